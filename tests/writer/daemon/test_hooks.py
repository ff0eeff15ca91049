"""What runs inside a daemon: extensions with their tasks, sections and sinks, and its maintenance."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import ConflictError, InvalidArgumentError, Registry, WriterClient
from dspy_registry.writer.daemon.host import Submitted
from dspy_registry.writer.daemon.lifecycle import Daemon
from dspy_registry.writer.draft import Draft
from tests.support.daemon_process import PATIENT, module
from tests.support.processes import child, say


@contextmanager
def inside(folder: Path, *extensions: Callable[[Daemon], None]) -> Iterator[Daemon]:
    """A daemon in a thread of this process."""
    served = Daemon(folder, extensions=extensions)
    ready = threading.Event()
    failures: list[BaseException] = []

    def run() -> None:
        try:
            served.run(lambda _: ready.set())
        except BaseException as error:
            failures.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert ready.wait(PATIENT)
        yield served
    finally:
        served.stop()
        thread.join()
    assert failures == []


def in_loop(hook: Callable[[Daemon], Any], results: list[Any], done: threading.Event) -> Callable[[Daemon], None]:
    """An extension with one task, which notes what `hook` gives or raises."""

    def extension(served: Daemon) -> None:
        async def task() -> None:
            try:
                results.append(await hook(served))
            except BaseException as error:
                results.append(error)
                raise
            finally:
                done.set()

        served.add_task(task)

    return extension


def outcome_of(folder: Path, hook: Callable[[Daemon], Any]) -> Any:
    results: list[Any] = []
    done = threading.Event()
    with inside(folder, in_loop(hook, results, done)):
        assert done.wait(PATIENT)
    return results[0]


def test_submit_commits_a_change_of_the_daemons_own(registry_folder: Path) -> None:
    def stage(draft: Draft) -> str:
        draft.register(module("acme.Inside"))
        return "staged"

    assert outcome_of(registry_folder, lambda served: served.submit(stage)) == Submitted(2, "staged")
    with Registry(registry_folder) as registry:
        assert "acme.Inside" in registry


def test_submit_raises_what_the_stage_raises(registry_folder: Path) -> None:
    def stage(draft: Draft) -> None:
        draft.register(module("acme.Inside"))
        draft.register(module("acme.Inside", category="other"), expected_version=7)

    error = outcome_of(registry_folder, lambda served: served.submit(stage))
    assert isinstance(error, ConflictError)
    assert error.current_version == 1
    with Registry(registry_folder) as registry:
        assert "acme.Inside" not in registry


def test_a_task_may_submit_when_it_is_ended(registry_folder: Path) -> None:
    def extension(served: Daemon) -> None:
        async def task() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await served.submit(lambda draft: draft.register(module("acme.Last")))

        served.add_task(task)

    with inside(registry_folder, extension):
        pass
    with Registry(registry_folder) as registry:
        assert "acme.Last" in registry


def test_a_task_that_fails_ends_alone(registry_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    failed = threading.Event()

    async def fail(served: Daemon) -> None:
        raise ValueError("a mistake of its own")

    with inside(registry_folder, in_loop(fail, [], failed)), WriterClient(registry_folder) as client:
        assert failed.wait(PATIENT)
        client.register_module(module("acme.Summarise"))
    assert "a mistake of its own" in caplog.text


def test_the_status_says_what_the_sections_say(registry_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    def extension(served: Daemon) -> None:
        served.add_section("good", lambda: {"files": 3})
        served.add_section("bad", lambda: 1 // 0)

    with inside(registry_folder, extension) as served, WriterClient(registry_folder) as client:
        client.register_module(module("acme.Summarise"))
        client.register_module(module("acme.Translate"))
        status = client.status()
        assert (status.pid, status.revision, status.queued) == (os.getpid(), 3, 0)
        assert (status.requests, status.groups, status.connections) == (2, 2, 1)
        assert status.sections["good"] == {"files": 3}
        assert status.sections["bad"]["error"].startswith("ZeroDivisionError")
        assert served.revision == 3
        assert msgspec.json.encode(status)


@pytest.mark.parametrize("durable", [False, True])
def test_usage_goes_to_its_sink(registry_folder: Path, durable: bool) -> None:
    taken: list[bytes] = []

    def extension(served: Daemon) -> None:
        def sink(batch: bytes) -> asyncio.Future[int] | None:
            taken.append(batch)
            if batch == b"refused":
                raise InvalidArgumentError("not usage.")
            if not durable:
                return None
            merged = asyncio.get_running_loop().create_future()
            merged.get_loop().call_soon(
                lambda: merged.set_exception(ConflictError("x", 1, 2)) if batch == b"lost" else merged.set_result(1)
            )
            return merged

        served.usage_sink = sink

    with inside(registry_folder, extension), WriterClient(registry_folder) as client:
        client.report_usage(b"batch")
        with pytest.raises(InvalidArgumentError):
            client.report_usage(b"refused")
        if durable:
            with pytest.raises(ConflictError):
                client.report_usage(b"lost")
    assert taken[:2] == [b"batch", b"refused"]


def hold_a_snapshot(path: str) -> None:
    with Registry(path) as registry, registry.snapshot():
        say(os.getpid())
        sys.stdin.read()


def test_dead_readers_are_reaped(registry_folder: Path) -> None:
    with inside(registry_folder) as served:
        environment = served.store.environment
        with child(__name__, "hold_a_snapshot", registry_folder) as reader:
            pid = str(reader.hear())
            assert pid in environment.lmdb.readers()
            reader.kill()
        environment.reap()
        assert pid not in environment.lmdb.readers()
