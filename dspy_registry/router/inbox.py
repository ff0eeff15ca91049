"""Where one thread waits for what it is to do next."""

from __future__ import annotations

import _thread
import os
import sys
from queue import SimpleQueue
from types import BuiltinFunctionType
from typing import Final, Generic, TypeVar

T = TypeVar("T")
_RING: Final = (1).to_bytes(8, sys.byteorder)


class Inbox(Generic[T]):
    """Holds one thing at a time, for the one thread that waits. None tells the thread to end.

    Writing to an eventfd lets go of the interpreter's lock while the thread is woken. A lock or a queue holds on to it,
    so the thread wakes only to wait again: that took more processor time than the rest of handing a call over.
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
        """Give it to the thread, which has taken what was given before."""
        self._given = given
        os.write(self._bell, _RING)

    def get(self) -> T | None:
        """Wait for what is given."""
        os.read(self._bell, len(_RING))
        given, self._given = self._given, None
        return given

    def close(self) -> None:
        """Let go of what is used to wait. Nobody may wait or give any more. A second call does nothing."""
        bell, self._bell = self._bell, -1
        if bell >= 0:
            os.close(bell)


class QueueInbox(Inbox[T]):
    """The same with a queue, which needs no descriptor, and which programs that replace threads replace too."""

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
    """An inbox of the quicker kind, where that works."""
    if not hasattr(os, "eventfd"):  # another system than Linux
        return QueueInbox()
    if type(_thread.start_new_thread) is not BuiltinFunctionType:  # gevent: to block one of its threads blocks them all
        return QueueInbox()
    try:
        return Inbox()
    except OSError:  # no descriptor is left
        return QueueInbox()
