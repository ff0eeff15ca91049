"""`Router` with real threads, tasks and processes."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    InvalidArgumentError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    RouteFailedError,
    Router,
)
from dspy_registry.readers import probes
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.health_file import ensure_health_file
from tests.support.reporting import NotingReporter
from tests.support.usage_helpers import wait_until

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="")


DURATIONS = {"acme.Fast": 60_000, "acme.Deep": 120_000, "acme.Last": 300_000, "acme.Hangs": 50}
"""Milliseconds. Only what hangs has a limit that a busy machine could reach."""


class RateLimitError(Exception):
    status_code = 429
    retry_after = 2.0


class BadRequestError(Exception):
    status_code = 400


@pytest.fixture
def registry(registry_folder: Path) -> Iterator[Registry]:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        for name, milliseconds in DURATIONS.items():
            writer.register_module(ModuleInfo(name, estimated_duration=milliseconds, capabilities=("qa",)))
        yield registry


@pytest.fixture
def reporter(registry_folder: Path, registry: Registry) -> Iterator[NotingReporter]:
    with NotingReporter(registry_folder) as reporter:
        yield reporter


def queued(reporter: NotingReporter) -> list[tuple[Any, ...]]:
    """(name, kind, version, limit, retry after) of each call that was reported."""
    return [(call[0], call[7], call[8], call[9], call[11]) for call in reporter.calls]


def fails(error: BaseException) -> Any:
    def target(**_: Any) -> Any:
        raise error

    return target


def echo(question: str = "") -> str:
    return f"{question}{variable.get()}"


def test_the_best_target_is_called_with_the_arguments_in_the_callers_context(
    registry: Registry, reporter: NotingReporter
) -> None:
    router = Router(registry, {"acme.Deep": fails(ValueError()), "acme.Fast": echo}, reporter)
    token = variable.set("!")
    result = router.call("qa", arguments={"question": "hi"})
    variable.reset(token)
    assert (result.value, result.name, result.version) == ("hi!", "acme.Fast", 1)
    assert [(attempt.name, attempt.kind, attempt.limit_ms) for attempt in result.attempts] == [
        ("acme.Fast", "ok", 72_000)
    ]
    assert queued(reporter) == [("acme.Fast", None, 1, 72_000.0, None)]
    assert reporter.calls[0][3] == 2  # characters of input


def test_each_attempt_is_reported_with_its_kind_and_logged(
    registry: Registry, reporter: NotingReporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "dspy_registry")
    targets = {"acme.Fast": fails(RateLimitError()), "acme.Deep": fails(ConnectionError()), "acme.Last": echo}
    result = Router(registry, targets, reporter).call(arguments={"question": "hi"})
    assert [attempt.kind for attempt in result.attempts] == ["rate_limited", "unavailable", "ok"]
    assert isinstance(result.attempts[0].error, RateLimitError)
    assert queued(reporter) == [
        ("acme.Fast", "rate_limited", 1, 72_000.0, 2.0),
        ("acme.Deep", "unavailable", 1, 144_000.0, None),
        ("acme.Last", None, 1, 360_000.0, None),
    ]
    assert len([record for record in caplog.records if "acme." in record.getMessage()]) == 3


@pytest.mark.parametrize("is_async", [False, True])
def test_a_probe_that_failed_is_not_followed_by_another_before_the_daemon_knows(
    registry: Registry, reporter: NotingReporter, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr(probes, "SETTLES", 600.0)
    now = boot_seconds()
    ensure_health_file(registry.path).publish([CircuitRow("acme.Fast", 1, now - 9, now - 1, 1, 1, 5, "error")])
    assert [entry.state for entry in registry.health()] == ["half_open"]  # and so it stays: there is no daemon

    async def fails_later(**_: Any) -> Any:
        raise ConnectionError

    async def answer(**_: Any) -> str:
        return "yes"

    if is_async:
        router = Router(registry, {"acme.Fast": fails_later, "acme.Deep": answer}, reporter)
        results = [asyncio.run(router.acall()) for _ in range(2)]
    else:
        router = Router(registry, {"acme.Fast": fails(ConnectionError()), "acme.Deep": echo}, reporter)
        results = [router.call() for _ in range(2)]
    assert [[attempt.kind for attempt in each.attempts] for each in results] == [["unavailable", "ok"], ["ok"]]


def test_a_wrong_request_is_raised_as_it_is(registry: Registry, reporter: NotingReporter) -> None:
    router = Router(registry, {"acme.Fast": fails(BadRequestError("no")), "acme.Deep": echo}, reporter)
    with pytest.raises(BadRequestError):
        router.call(arguments={"question": "hi"})
    assert [call[1] for call in queued(reporter)] == ["caller"]


def test_a_thread_that_hangs_is_abandoned_and_counted_until_it_ends(
    registry: Registry, reporter: NotingReporter
) -> None:
    goes_on = threading.Event()
    targets = {"acme.Hangs": lambda **_: goes_on.wait(60), "acme.Deep": echo}
    router = Router(registry, targets, reporter)
    try:
        result = router.call(arguments={"question": "hi"})
        assert [(attempt.name, attempt.kind) for attempt in result.attempts] == [
            ("acme.Hangs", "timeout"),
            ("acme.Deep", "ok"),
        ]
        assert isinstance(result.attempts[0].error, TimeoutError)
        assert router.abandoned == 1
    finally:
        goes_on.set()
    wait_until(lambda: router.abandoned == 0, "the abandoned thread")
    assert [call[1] for call in queued(reporter)] == ["timeout", None]


def test_a_forked_child_does_not_count_the_abandoned_calls_of_its_parent(
    registry: Registry, reporter: NotingReporter
) -> None:
    goes_on = threading.Event()
    router = Router(registry, {"acme.Hangs": lambda **_: goes_on.wait(60)}, reporter, rounds=1)
    try:
        with pytest.raises(RouteFailedError):
            router.call()
        assert router.abandoned == 1
        child = os.fork()
        if not child:
            os._exit(router.abandoned)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        goes_on.set()
    wait_until(lambda: router.abandoned == 0, "the abandoned thread")


def test_all_attempts_are_in_the_error_when_none_succeeds(registry: Registry, reporter: NotingReporter) -> None:
    router = Router(registry, {"acme.Fast": fails(OSError("down"))}, reporter, rounds=1)
    with pytest.raises(RouteFailedError) as caught:
        router.call(arguments={"question": "hi"})
    assert [attempt.name for attempt in caught.value.attempts] == ["acme.Fast"]  # type: ignore[attr-defined]
    assert isinstance(caught.value.__cause__, OSError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert copy.message == caught.value.message


def test_names_narrow_the_targets_and_must_have_one(registry: Registry, reporter: NotingReporter) -> None:
    router = Router(registry, {"acme.Fast": echo, "Deep": echo}, reporter)
    assert router.call(names="acme.Deep").name == "acme.Deep"
    assert router.call(names=("Deep", "Fast"), prefer="reliability").name == "acme.Fast"
    with pytest.raises(InvalidArgumentError):
        router.call(names="acme.Last")
    with pytest.raises(InvalidArgumentError):
        Router(registry, {"acme.Fast": 5}, rounds=0)


def test_a_target_whose_module_is_gone_is_left_out(
    registry: Registry, reporter: NotingReporter, registry_folder: Path
) -> None:
    router = Router(registry, {"acme.Gone": echo, "acme.Deep": echo}, reporter)
    assert router.call().name == "acme.Deep"


def test_tasks_are_awaited_and_cancelled_at_their_limit(registry: Registry, reporter: NotingReporter) -> None:
    ended: list[str] = []

    async def hangs(**_: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def answers(question: str) -> str:
        return question + variable.get()

    async def main() -> Any:
        variable.set("?")
        router = Router(registry, {"acme.Hangs": hangs, "acme.Deep": answers}, reporter)
        result = await router.acall("qa", arguments={"question": "hi"}, deadline_ms=600_000)
        await asyncio.sleep(0)
        return result, router.abandoned

    result, abandoned = asyncio.run(main())
    assert ([attempt.kind for attempt in result.attempts], result.value) == (["timeout", "ok"], "hi?")
    assert (ended, abandoned) == (["cancelled"], 0)


def test_a_plain_function_runs_in_a_thread_beside_the_loop(registry: Registry, reporter: NotingReporter) -> None:
    threads: list[int] = []

    def target() -> str:
        threads.append(threading.get_ident())
        return "done"

    async def main() -> Any:
        return await Router(registry, {"acme.Fast": fails(OSError()), "acme.Deep": target}, reporter).acall()

    result = asyncio.run(main())
    assert ([attempt.kind for attempt in result.attempts], result.value) == (["error", "ok"], "done")
    assert threads != [threading.get_ident()]


def test_a_cancelled_call_is_reported_as_cancelled(registry: Registry, reporter: NotingReporter) -> None:
    async def hangs() -> None:
        await asyncio.sleep(60)

    async def main() -> None:
        router = Router(registry, {"acme.Last": hangs}, reporter)
        task = asyncio.ensure_future(router.acall())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert router.abandoned == 0

    asyncio.run(main())
    assert [call[1] for call in queued(reporter)] == ["cancelled"]


def test_a_target_that_must_be_awaited_is_refused_by_call(registry: Registry, reporter: NotingReporter) -> None:
    async def target() -> None: ...

    with pytest.raises(InvalidArgumentError):
        Router(registry, {"acme.Fast": target}, reporter).call()


def test_a_router_works_in_a_forked_child_and_in_many_threads(registry: Registry, reporter: NotingReporter) -> None:
    router = Router(registry, {"acme.Last": echo}, reporter)
    assert router.call().value == router.call().value
    child = os.fork()
    if not child:
        os._exit(0 if router.call(arguments={"question": "in the child"}).name == "acme.Last" else 1)
    assert os.waitpid(child, 0)[1] == 0
    found: list[str] = []
    several = [threading.Thread(target=lambda: found.extend(router.call().name for _ in range(20))) for _ in range(8)]
    for each in several:
        each.start()
    for each in several:
        each.join()
    assert found == ["acme.Last"] * 160
    assert len(reporter.calls) == 162


def test_a_pickled_router_opens_the_same_registry(registry: Registry, reporter: NotingReporter) -> None:
    copy = pickle.loads(pickle.dumps(Router(registry, {"acme.Last": echo}, reporter, rounds=2)))
    assert copy.call(arguments={"question": "hi"}).value == "hi"
    assert copy.registry.path == registry.path
    copy.reporter.close(0.0)
    copy.registry.close()


def test_an_idle_thread_takes_the_next_call(registry: Registry, reporter: NotingReporter) -> None:
    router = Router(registry, {"acme.Last": lambda: threading.get_ident()}, reporter)
    seen: set[int] = set()

    def is_known() -> bool:  # not at once: a thread goes back to wait after it has answered
        thread = router.call().value
        return thread in seen or seen.add(thread) is not None

    wait_until(is_known, "a thread that was used before")
