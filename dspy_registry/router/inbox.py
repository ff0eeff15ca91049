"""How a thread waits for its next job, and gets it."""

from __future__ import annotations

import _thread
import os
from queue import SimpleQueue
from types import BuiltinFunctionType
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_COUNTER_BYTES: Final = 8


class Inbox(Generic[T]):
    """Holds one item at a time, for the one thread that waits. None tells the thread to end.

    A write to an eventfd releases the interpreter's lock while it wakes the thread. A lock or a queue keeps that lock,
    so the woken thread has to wait for it at once. This took more processor time than all else that hands a call over.
    """

    __slots__ = ("_bell", "_given", "idle_since")

    def __init__(self) -> None:
        self.idle_since = 0.0
        """When the thread last began to wait, on the monotonic clock. The thread sets it."""
        self._given: T | None = None
        self._bell = -1
        self._bell = os.eventfd(0)

    def __del__(self) -> None:
        self.close()

    def put(self, given: T | None) -> None:
        """Give an item to the thread. The thread must have taken the item before it."""
        self._given = given
        os.eventfd_write(self._bell, 1)

    def get(self) -> T | None:
        """Wait for an item, and take it."""
        os.read(self._bell, _COUNTER_BYTES)  # unlike `eventfd_read` it goes on after a signal
        given, self._given = self._given, None
        return given

    def close(self) -> None:
        """Close the eventfd. No `put` or `get` may follow. A second call does nothing."""
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)


class QueueInbox(Inbox[T]):
    """The same with a queue. It needs no file descriptor, and works where a library such as gevent replaces threads."""

    __slots__ = ("_queue",)

    def __init__(self) -> None:
        self.idle_since = 0.0
        self._queue: SimpleQueue[T | None] = SimpleQueue()

    def put(self, given: T | None) -> None:
        self._queue.put(given)

    def get(self) -> T | None:
        return self._queue.get()

    def close(self) -> None:
        pass


def new_inbox() -> Inbox[T]:
    """An `Inbox` where that works, else a `QueueInbox`."""
    if not hasattr(os, "eventfd"):  # another system than Linux
        return QueueInbox()
    if type(_thread.start_new_thread) is not BuiltinFunctionType:  # gevent: to block one of its threads blocks them all
        return QueueInbox()
    try:
        return Inbox()
    except OSError:  # no descriptor is left
        return QueueInbox()
