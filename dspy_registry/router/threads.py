"""Threads that run calls for a bounded time. A thread cannot be interrupted: one that runs too long is abandoned.

An abandoned thread runs until its call ends. Only then it gives back what the call holds. Threads are used again,
because it takes long to start one. They are daemon threads: an abandoned one does not keep the process from ending.
"""

from __future__ import annotations

import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from dspy_registry.router.admission import NOTHING_HELD, Admission
from dspy_registry.router.inbox import Inbox, new_inbox

_IDLE_SECONDS: Final = 60.0

_clock = time.monotonic


class Job(ABC):
    """A call in a thread, and what it holds: that is given back when the call ends, or at once if it cannot begin.

    `tell` is called in that thread when the call has ended; then `value` or `error` is set. It is a method: as an
    attribute it would make a reference cycle. So what a job holds is given back at once when the job is dropped before
    it begins.
    """

    value: Any = None
    error: BaseException | None = None

    def __init__(self, work: Callable[[], Any], admission: Admission = NOTHING_HELD) -> None:
        self._work = [work]  # whoever takes it out decides whether the call is made
        self._admission = admission

    @abstractmethod
    def tell(self) -> None:
        """The call has ended."""

    def run(self) -> None:
        """Make the call, if it was not withdrawn."""
        try:
            work = self._work.pop()
        except IndexError:
            return
        try:
            self.value = work()
        except BaseException as error:
            self.error = error
        if self._admission is not NOTHING_HELD:
            self._admission.end(self.error is None)
        self.tell()

    def withdraw(self) -> bool:
        """Keep the call from being made. Returns False if it has begun, or was withdrawn before; else True.

        An interrupt may come when the call has begun already: then it keeps what it holds.
        """
        try:
            self._work.pop()
        except IndexError:
            return False
        self._admission.end()
        return True


class Threads:
    """Threads that wait for jobs. When a job ends, a thread that has had no job for a minute is told to end."""

    def __init__(self) -> None:
        self._idle: deque[Inbox[Job]] = deque()

    def start(self, job: Job) -> None:
        """Run a job in another thread."""
        try:
            inbox = self._idle.pop()  # the last one that became idle, so that the others can reach their minute
        except IndexError:
            inbox = new_inbox()
            arguments = inbox, self._idle
            thread = threading.Thread(target=self._serve, args=arguments, name="dspy-registry call", daemon=True)
            inbox.put(job)
            thread.start()
        else:
            inbox.put(job)

    def forget(self) -> None:
        """In a forked child: the threads are the parent's."""
        idle, self._idle = self._idle, deque()
        for inbox in idle:
            inbox.close()

    def _serve(self, inbox: Inbox[Job], idle: deque[Inbox[Job]]) -> None:
        while (job := inbox.get()) is not None:
            job.run()
            del job  # the values of a call may be large
            if self._idle is not idle:  # the call forked, and this is the child: the parent's thread waits at the inbox
                break
            inbox.idle_since = _clock()
            if idle:
                _end_one(idle, inbox.idle_since)
            idle.append(inbox)
        inbox.close()


def _end_one(idle: deque[Inbox[Job]], now: float) -> None:
    """Tell the thread that has been idle longest to end, if it has been idle for a minute."""
    with suppress(IndexError):  # another thread may take each of them at any moment
        if now - idle[0].idle_since < _IDLE_SECONDS:
            return
        longest = idle.popleft()
        if now - longest.idle_since < _IDLE_SECONDS:
            idle.appendleft(longest)
        else:
            longest.put(None)


threads: Final = Threads()
os.register_at_fork(after_in_child=threads.forget)
