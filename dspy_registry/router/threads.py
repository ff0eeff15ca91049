"""Threads that run calls for a bounded time. A thread cannot be interrupted: one that runs too long is abandoned.

An abandoned thread runs on until its call ends. Only then is what the call holds given back. Threads are used again, so
a call costs no start of a thread. They are daemon threads: an abandoned one does not keep the process from ending.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

_IDLE_SECONDS: Final = 60.0


class Job:
    """A call in a thread. `tell` is called in that thread when it has ended; then `value` or `error` is set."""

    __slots__ = ("_work", "error", "tell", "value")

    def __init__(self, work: Callable[[], Any], tell: Callable[[], None]) -> None:
        self._work = work
        self.tell = tell
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self) -> None:
        """Call it."""
        try:
            self.value = self._work()
        except BaseException as error:
            self.error = error
        self.tell()


class Threads:
    """Threads that wait for a job for a minute, and then end."""

    def __init__(self) -> None:
        self._idle: deque[SimpleQueue[Job]] = deque()

    def start(self, job: Job) -> None:
        """Run a job in another thread."""
        try:
            inbox = self._idle.pop()  # the one that waits for the shortest time: the others may end
        except IndexError:
            inbox = SimpleQueue()
            thread = threading.Thread(target=self._serve, args=(inbox,), name="dspy-registry call", daemon=True)
            inbox.put(job)
            thread.start()
        else:
            inbox.put(job)

    def forget(self) -> None:
        """In a forked child: the threads are the parent's."""
        self._idle = deque()

    def _serve(self, inbox: SimpleQueue[Job]) -> None:
        job: Job | None = inbox.get()
        while job is not None:
            job.run()
            del job  # the values of a call may be large
            self._idle.append(inbox)
            job = self._next(inbox)

    def _next(self, inbox: SimpleQueue[Job]) -> Job | None:
        with suppress(Empty):
            return inbox.get(timeout=_IDLE_SECONDS)
        try:
            self._idle.remove(inbox)
        except ValueError:  # it was taken at this moment: its job comes
            return inbox.get()
        return None


threads: Final = Threads()
os.register_at_fork(after_in_child=threads.forget)
