"""The threads that run calls: used again, ended when they are not needed, and left to the parent by a fork."""

from __future__ import annotations

import _thread
import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_registry.router import threads as threads_module
from dspy_registry.router.inbox import Inbox, QueueInbox, new_inbox
from dspy_registry.router.threads import Job, Threads
from tests.support.usage_helpers import wait_until

KINDS = (Inbox, QueueInbox)


class Noted(Job):
    """A job for whose end a test waits."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(work)
        self.has_ended = threading.Event()

    def tell(self) -> None:
        self.has_ended.set()


def done(threads: Threads, work: Callable[[], Any] = threading.get_ident) -> Any:
    """What a job gives. Its thread is idle again."""
    job = Noted(work)
    threads.start(job)
    assert job.has_ended.wait(60)
    wait_until(lambda: bool(threads._idle), "an idle thread")
    return job.value


def two_idle(threads: Threads) -> set[int]:
    """Two threads that wait for a job."""
    both = threading.Barrier(2)

    def met() -> int:
        both.wait(60)
        return threading.get_ident()

    jobs = Noted(met), Noted(met)
    for job in jobs:
        threads.start(job)
    wait_until(lambda: len(threads._idle) == 2, "two idle threads")
    return {job.value for job in jobs}


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_an_inbox_hands_over_one_thing_at_a_time(kind: type[Inbox[int]]) -> None:
    there, back = kind(), kind()
    found: list[int | None] = []

    def serve() -> None:
        while (given := there.get()) is not None:
            found.append(given)
            back.put(given)

    thread = threading.Thread(target=serve)
    thread.start()
    for number in range(100):
        there.put(number)
        assert back.get() == number
    there.put(None)
    thread.join()
    assert found == list(range(100))
    for inbox in (there, back):
        inbox.close()
        inbox.close()


@pytest.mark.parametrize("kind", KINDS)
def test_an_idle_thread_takes_the_next_job_whatever_it_waits_at(
    kind: type[Inbox[Job]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads_module, "new_inbox", kind)
    threads = Threads()
    first = done(threads)
    assert {done(threads) for _ in range(20)} == {first}


def test_a_thread_that_was_idle_for_a_minute_ends_and_lets_go_of_its_descriptor() -> None:
    threads = Threads()
    idents = two_idle(threads)
    assert done(threads) in idents
    wait_until(lambda: len(threads._idle) == 2, "two idle threads")
    longest, other = threads._idle
    for inbox in (longest, other):
        inbox.idle_since -= 60.0
    last = done(threads)
    wait_until(lambda: [each.ident for each in threading.enumerate() if each.ident in idents] == [last], "an end")
    assert longest._bell == -1 != other._bell
    assert done(threads) == last


def test_a_forked_child_closes_the_descriptors_of_threads_it_does_not_have() -> None:
    threads = Threads()
    two_idle(threads)
    bells = [inbox._bell for inbox in threads._idle]
    child = os.fork()
    if not child:
        threads.forget()
        os._exit(0 if not any(map(is_open, bells)) and done(threads) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(map(is_open, bells))


def test_a_call_that_forks_leaves_its_inbox_to_the_parent() -> None:
    """Else the child's copy of the thread would take a job of the parent's."""
    threads = Threads()

    def fork() -> int:
        child = os.fork()
        if not child:
            threads.forget()
        return child

    def leave(worker: threading.Thread) -> None:
        worker.join(60)
        os._exit(worker.is_alive())

    class Forked(Noted):
        def tell(self) -> None:
            super().tell()
            if not self.value:
                threading.Thread(target=leave, args=(threading.current_thread(),)).start()

    job = Forked(fork)
    threads.start(job)
    assert job.has_ended.wait(60)
    assert os.waitstatus_to_exitcode(os.waitpid(job.value, 0)[1]) == 0
    wait_until(lambda: len(threads._idle) == 1, "an idle thread")
    assert done(threads, lambda: "done") == "done"


def test_without_a_descriptor_a_thread_waits_at_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "eventfd", none_left)
    assert type(new_inbox()) is QueueInbox
    assert done(Threads(), lambda: "done") == "done"


def test_threads_that_a_program_has_replaced_wait_at_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    own = _thread.start_new_thread
    monkeypatch.setattr(_thread, "start_new_thread", lambda *arguments: own(*arguments))
    assert type(new_inbox()) is QueueInbox
    monkeypatch.undo()
    assert type(new_inbox()) is Inbox
