"""A bell that wakes one thread."""

from __future__ import annotations

import threading
from contextlib import suppress


class Bell:
    """`ring` may be called anywhere, in a signal's handler too: it is one atomic step. Rung twice, it wakes once."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the thread that waits, or the next one that does."""
        with suppress(RuntimeError):  # it has been rung, and nobody has heard it yet
            self._lock.release()

    def wait(self, seconds: float) -> bool:
        """Wait until it is rung, for at most `seconds`. Returns whether it was."""
        return self._lock.acquire(timeout=seconds)
