"""Building programs as soon as a commit moves their versions, and not only when they are looked up next.

A thread of this process hears the bell of the revision file, and lets each Programs object look. It rests a while after
each bell. So a registry that changes all the time costs its workers little, and its writer has few to wake.
"""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Protocol

from dspy_registry.registry_store.revision import RETIRED, RevisionFile

if TYPE_CHECKING:
    from dspy_registry.readers.registry import Registry
    from dspy_registry.readers.waiting import Waiter

_REST: Final = 0.1
"""Seconds. Each look takes some 0.3 ms of processor time, of which most is waking up and following the change log."""


class Looking(Protocol):
    """What looks after commits. `_look` must be quick, and raise nothing."""

    _registry: Registry

    def _look(self) -> None: ...


class Follower:
    """Lets its owner look after commits, once `follow` was called. It does not keep its owner alive."""

    def __init__(self, owner: Looking) -> None:
        self._owner = weakref.ref(owner)
        self._seen = RETIRED  # the word at the last look
        self.forget()

    def forget(self) -> None:
        """Follow nothing: in a forked child, which does not have the thread."""
        self._file: RevisionFile | None = None
        self._waiter: Waiter | None = None
        self._beginning = threading.Lock()

    def follow(self, registry: Registry) -> None:
        """Look after commits of the registry that is open now. Nobody looks where there is no futex."""
        if registry._file is self._file or not self._beginning.acquire(blocking=False):
            return  # another thread is at it
        try:
            self._join(registry._file)
        finally:
            self._beginning.release()

    def _join(self, file: RevisionFile) -> None:
        from dspy_registry.readers.waiting import can_sleep, waiter_of  # loads ctypes

        self._leave()
        self._file = file
        if can_sleep(file):
            self._waiter = waiter_of(file, _REST)
            with suppress(RuntimeError):  # no thread can be started now: whoever joins next tries again
                self._waiter.join(self._wake, self._must_look)

    def _leave(self) -> None:
        if self._waiter is not None:
            self._waiter.leave(self._wake)

    def _wake(self) -> None:
        owner = self._owner()
        if owner is None or owner._registry._environment is None:
            self._leave()
        else:
            self._seen = owner._registry._word[()]
            owner._look()

    def _must_look(self) -> bool:
        owner = self._owner()
        return owner is None or owner._registry._environment is None or owner._registry._word[()] != self._seen
