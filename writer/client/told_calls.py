"""A reporter's queue of calls, and which of them this process's readers have been told of.

Readers act on the process's own calls at once, not when the reporter's thread has taken them. So who asks has the
newest calls told first. That takes nothing from the queue: whatever interrupts the asker, each call is reported once.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Final

from dspy_registry.registry_store.outcome_kinds import TIMEOUT
from dspy_registry.registry_store.own_place import OwnPlace
from dspy_registry.writer.client.recorded_call import Call, Names, measured, plain_name

MOST_AT_ONCE: Final = 256
"""Calls that one question has told. A process that asks before each call has never more than its threads make."""


class ToldCalls:
    """The queue is filled by any thread, and emptied only here."""

    def __init__(self, queue: deque[Call], place: OwnPlace) -> None:
        self._queue = queue
        self._place = place
        self.begin()
        place.add_teller(self)

    def begin(self) -> None:
        """The queue is empty, and nobody else is at work here: at first, and in a forked child."""
        self._lock = threading.RLock()  # re-entered by a signal's handler that asks
        self._told = 0

    def tell(self) -> None:
        """Tell what is queued and was not told yet."""
        if len(self._queue) <= self._told:
            return
        with self._lock:
            for _ in range(MOST_AT_ONCE):
                if len(self._queue) <= self._told:
                    return
                call = self._queue[self._told]
                self._told += 1
                self._tell(call)

    def pop(self) -> Call:
        """The oldest call, taken from the queue and told."""
        with self._lock:
            call = self._queue.popleft()
            if self._told:
                self._told -= 1
            else:
                self._tell(call)
            return call

    def _tell(self, call: Call) -> None:
        try:
            kind, version, size, milliseconds = measured(call)
            if milliseconds is None:
                return
            name = call[0]
            names = (name,) if type(name) is str else _several(name)
            tell = self._place.timed_out if kind == TIMEOUT else self._place.completed
            tell(names, version, size, milliseconds)
        except (Exception, SystemExit, GeneratorExit):  # values are objects of the program, and may raise anything
            return


def _several(name: Names) -> tuple[str, ...]:
    plain = plain_name(name)
    return (plain,) if isinstance(plain, str) else plain
