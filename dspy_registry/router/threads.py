"""Threads that run calls for a bounded time. A thread cannot be interrupted: one that runs too long is abandoned.

An abandoned thread runs on until its call ends. Only then is what the call holds given back. Threads are used again, so
a call costs no start of a thread. They are daemon threads: an abandoned one does not keep the process from ending.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Final

_IDLE_SECONDS: Final = 60.0


class Job(ABC):
    """A call in a thread. `tell` is called in that thread when it has ended; then `value` or `error` is set.

    `tell` is a method, not an attribute: a job that is dropped before it begins is no cycle, so what it holds is given
    back at once.
    """

    def __init__(self, work: Callable[[], Any]) -> None:
        self._work = work
        self._turn = [True]  # the thread that takes it decides whether the call is made
        self.value: Any = None
        self.error: BaseException | None = None

    @abstractmethod
    def tell(self) -> None:
        """The call has ended."""

    def run(self) -> None:
        """Call it, if it was not withdrawn."""
        if not self.withdraw():
            return
        try:
            self.value = self._work()
        except BaseException as error:
            self.error = error
        self.tell()

    def withdraw(self) -> bool:
        """Whether it had not begun; then it never will."""
        try:
            return self._turn.pop()
        except IndexError:
            return False


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
