"""A reporter's queue of calls, and which of them this process's readers have been told of.

Readers act on the process's own calls at once, not when the reporter's thread has taken them. So who asks has the
newest calls told first. That takes nothing from the queue: whatever interrupts the asker, each call is reported once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from itertools import repeat
from typing import Final

from dspy_registry.registry_store.outcome_kinds import TIMEOUT
from dspy_registry.registry_store.own_place import OwnPlace
from dspy_registry.writer.client.recorded_call import Call, Names, measured, plain_name

MOST_AT_ONCE: Final = 256
"""Calls that one question has told. A process that asks before each call has never more than its threads make."""


NO_ROOM: Final = len
"""Stands in `room` where there is none. It keeps nothing, and returns a number where `append` returns None."""


class ToldCalls:
    """The queue is filled by any thread, and emptied only here.

    Who has a call gives it to what it takes from `room`: the queue's `append` for each further call that may be kept,
    or `NO_ROOM`. Of all that was measured, this takes the least time.
    """

    def __init__(self, place: OwnPlace) -> None:
        self.queue: deque[Call] = deque()
        self._put = self.queue.append
        self.room: deque[Callable[[Call], int | None]] = deque()
        self._place = place
        self.begin()
        place.add_teller(self)

    def begin(self) -> None:
        """The queue is empty and has no room, and nobody else is at work here: at first, and in a forked child."""
        self._lock = threading.RLock()  # re-entered by a signal's handler that asks
        self._told = 0  # how many of the oldest calls in the queue
        self.is_open = False
        """Whether there is room, except for calls that wait."""
        self.queue.clear()
        self.room.clear()

    def open(self, places: int) -> None:
        """Give the queue room for this number of calls."""
        self.is_open = True
        self.room.extend(repeat(self._put, places))

    def close(self) -> None:
        """Let the queue take no further call."""
        with self._lock:
            self.is_open = False
            self.room.clear()

    def __len__(self) -> int:
        return len(self.queue)

    def tell(self) -> None:
        """Tell what is queued and was not told yet."""
        if len(self.queue) > self._told:
            with self._lock:
                enough = min(len(self.queue), self._told + MOST_AT_ONCE)
                while self._told < enough:  # a signal's handler that asks has told some meanwhile
                    self._tell_next()

    def pop(self) -> Call:
        """The oldest call, taken from the queue and told. Raises IndexError when there is none."""
        with self._lock:
            if not self._told:
                self._tell_next()
            call = self.queue.popleft()
            self._told -= 1
            if self.is_open:
                self.room.append(self._put)
            return call

    def _tell_next(self) -> None:
        call = self.queue[self._told]
        self._told += 1  # first: whatever interrupts the rest, no call is told twice
        try:
            kind, version, size, milliseconds = measured(call)
            if milliseconds is not None:
                name = call[0]
                names = (name,) if type(name) is str else _several(name)
                tell = self._place.timed_out if kind == TIMEOUT else self._place.completed
                tell(names, version, size, milliseconds)
        except (Exception, SystemExit, GeneratorExit):  # values are objects of the program, and may raise anything
            return


def _several(name: Names) -> tuple[str, ...]:
    plain = plain_name(name)
    return (plain,) if isinstance(plain, str) else plain
