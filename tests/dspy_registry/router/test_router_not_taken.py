"""A routed call that no thread has taken when it is interrupted, or its time is over: it is not made nor reported.

An interrupt after a thread has taken it is reported once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Policy, Registry, RegistryWriter, RouteFailedError, Router
from dspy_registry.router.threads import Job, threads
from tests.support.reporting import NotingReporter
from tests.support.usage_helpers import wait_until

NAME = "acme.Qa"


@pytest.fixture
def registry(registry_folder: Path, expected_ms: int) -> Iterator[Registry]:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo(NAME, estimated_duration=expected_ms))
        writer.set_policy(NAME, Policy(max_concurrency=1))
        yield registry


@pytest.fixture
def expected_ms() -> int:
    return 60_000


@pytest.fixture
def reporter(registry_folder: Path) -> Iterator[NotingReporter]:
    noting = NotingReporter(registry_folder)
    with noting:
        yield noting


def interrupt_when(event: threading.Event) -> threading.Thread:
    """A real SIGINT, which the main thread handles while it waits for the call."""

    def interrupt() -> None:
        assert event.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    return thread


def test_a_call_that_no_thread_has_taken_yet_is_not_made_and_not_reported(
    registry: Registry, reporter: NotingReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[None] = []
    router = Router(registry, {NAME: lambda: made.append(None)}, reporter, rounds=1)
    is_given, may_take, has_run = threading.Event(), threading.Event(), threading.Event()
    run = Job.run

    def run_late(job: Job) -> bool:
        is_given.set()
        assert may_take.wait(60)
        is_made = run(job)
        has_run.set()
        return is_made

    monkeypatch.setattr(Job, "run", run_late)
    interrupting = interrupt_when(is_given)
    with pytest.raises(KeyboardInterrupt):
        router.call()
    interrupting.join()
    assert (router.abandoned, registry.limited_calls()) == (0, [])  # at once, although its thread still has it
    may_take.set()
    assert has_run.wait(60)
    assert (made, reporter.calls, router.abandoned) == ([], [], 0)
    monkeypatch.undo()
    assert router.call().name == NAME  # the only place under the limit is free
    assert (made, len(reporter.calls)) == ([None], 1)


def test_a_call_that_a_thread_has_taken_is_reported_once_and_keeps_its_place_until_it_ends(
    registry: Registry, reporter: NotingReporter
) -> None:
    made: list[None] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def target() -> None:
        made.append(None)
        has_begun.set()
        assert may_end.wait(60)

    router = Router(registry, {NAME: target}, reporter, rounds=1)
    interrupting = interrupt_when(has_begun)
    with pytest.raises(KeyboardInterrupt):
        router.call()
    interrupting.join()
    assert (router.abandoned, len(registry.limited_calls())) == (1, 1)
    may_end.set()
    wait_until(lambda: not router.abandoned and not registry.limited_calls(), "the end of the call")
    assert (made, [call[7] for call in reporter.calls]) == ([None], ["cancelled"])


def test_a_call_for_which_there_is_no_thread_is_not_reported_and_holds_nothing(
    registry: Registry, reporter: NotingReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[None] = []
    router = Router(registry, {NAME: lambda: made.append(None)}, reporter, rounds=1)
    while threads._idle:  # those of other tests
        threads._idle.pop().put(None)

    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(RuntimeError, match="start new thread"):
        router.call()
    monkeypatch.undo()
    assert (router.abandoned, registry.limited_calls(), reporter.calls) == (0, [], [])
    assert router.call().name == NAME
    assert len(made) == 1


class Late:
    """From now on each call waits, in its thread, until it `may_take` it. Then `has_run` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_given, self.may_take, self.has_run = threading.Event(), threading.Event(), threading.Event()
        run = Job.run

        def run_late(job: Job) -> None:
            self.is_given.set()
            assert self.may_take.wait(60)
            run(job)
            self.has_run.set()

        monkeypatch.setattr(Job, "run", run_late)


@pytest.mark.parametrize("expected_ms", [1])  # it may be called although little time is left
@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_whose_time_is_over_before_a_thread_takes_it_is_not_made_and_counts_against_no_module(
    registry: Registry, reporter: NotingReporter, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    made: list[None] = []
    router = Router(registry, {NAME: lambda: made.append(None)}, reporter)
    late = Late(monkeypatch)
    with pytest.raises(RouteFailedError, match="none could begin") as failed:
        asyncio.run(router.acall(deadline_ms=1000)) if is_async else router.call(deadline_ms=1000)
    assert late.is_given.is_set()
    assert (failed.value.attempts, router.abandoned, registry.limited_calls()) == ((), 0, [])
    late.may_take.set()
    assert late.has_run.wait(60)
    assert (made, reporter.calls) == ([], [])


def test_a_task_that_is_cancelled_before_a_thread_takes_its_call_makes_none(
    registry: Registry, reporter: NotingReporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[None] = []
    router = Router(registry, {NAME: lambda: made.append(None)}, reporter, rounds=1)
    late = Late(monkeypatch)

    async def cancelled() -> None:
        calling = asyncio.create_task(router.acall())
        with ThreadPoolExecutor() as others:
            assert await asyncio.get_running_loop().run_in_executor(others, late.is_given.wait, 60)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    asyncio.run(cancelled())
    assert (router.abandoned, registry.limited_calls()) == (0, [])
    late.may_take.set()
    assert late.has_run.wait(60)
    assert (made, reporter.calls) == ([], [])
