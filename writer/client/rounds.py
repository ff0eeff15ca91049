"""The rounds of a reporter, and who waits for one: a round answers all that asked before it began."""

from __future__ import annotations

import threading
from enum import Enum, auto


class Sent(Enum):
    """How a round ended."""

    ALL = auto()
    """All calls were delivered."""
    NOT_IN_TIME = auto()
    """There is a daemon, and it did not answer in time."""
    REFUSED = auto()
    """There is no daemon, or it takes none now, or the round failed."""


class Rounds:
    """Threads may share it. What one round has shown, no later one takes back: who waited may look long after it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # re-entered by a signal's handler that asks
        self._last = Sent.ALL
        self._answered = self._delivered = 0
        self.asked = 0
        """How often somebody asked for a round."""
        self.are_over = False
        """Whether the thread that makes them has ended."""

    def ask(self) -> int:
        """The number of this request."""
        with self._changed:
            self.asked += 1
            return self.asked

    def end(self, asked: int, sent: Sent) -> None:
        """A round has ended. `asked` is what it was when the round began."""
        with self._changed:
            self._last = sent
            self._answered = max(self._answered, asked)
            if sent is Sent.ALL:
                self._delivered = max(self._delivered, asked)
            self._changed.notify_all()

    def finish(self) -> None:
        """The thread makes no further round: whoever waits for one makes it."""
        with self._changed:
            self.are_over = True
            self._changed.notify_all()

    def wait(self, request: int, seconds: float) -> Sent | None:
        """How the round ended that answers this request. None: it has not, within these seconds or for good."""
        with self._changed:
            self._changed.wait_for(lambda: self._answered >= request or self.are_over, seconds)
            if self._delivered >= request:
                return Sent.ALL
            return self._last if self._answered >= request else None
