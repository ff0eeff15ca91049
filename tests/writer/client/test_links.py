"""Clients whose daemon is late, gone, or started again; and clients that are shared, forked and cancelled."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    AsyncWriterClient,
    InvalidArgumentError,
    Registry,
    RegistryWriter,
    StoreClosedError,
    WriterClient,
    WriterTimeoutError,
    WriterUnavailableError,
)
from tests.support.client_kinds import Opened, either, raised
from tests.support.daemon_process import PATIENT, Served, daemon, module
from tests.support.processes import run, say


@pytest.fixture
def served(registry_folder: Path) -> Iterator[Served]:
    with daemon(registry_folder) as served:
        yield served


# No daemon, a slow one, another one


@either
def test_without_a_daemon_it_says_so_at_once(registry_folder: Path, connect: Opened) -> None:
    with connect(registry_folder, timeout=None) as client:
        assert raised(client.register_module, module("acme.m")).remedy
        for call in (lambda: client.register_module(module("acme.m")), client.status):
            assert isinstance(raised(call), WriterUnavailableError)
        with daemon(registry_folder):  # and works as soon as there is one
            client.register_module(module("acme.n"))
    with Registry(registry_folder) as registry:
        assert "acme.m" not in registry  # what failed stays so


@either
def test_an_embedded_writer_is_named_where_a_daemon_is_looked_for(registry_folder: Path, connect: Opened) -> None:
    with RegistryWriter(registry_folder), connect(registry_folder, timeout=0.2) as client:
        error = raised(client.register_module, module("acme.m"))
        assert isinstance(error, WriterUnavailableError)
        assert str(os.getpid()) in error.message


@either
@pytest.mark.parametrize("timeout", [float("inf"), 1e300, 10**400, 1e8], ids=["inf", "float", "int", "years"])
def test_a_time_limit_beyond_all_clocks_is_none(served: Served, connect: Opened, timeout: float) -> None:
    with connect(served.path, timeout=timeout) as client:
        assert client.register_module(module("acme.m")) == 2


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("-inf"), "10", [1]])
def test_a_timeout_that_is_none_is_refused(tmp_path: Path, timeout: float) -> None:
    for kind in (WriterClient, AsyncWriterClient):
        with pytest.raises(InvalidArgumentError, match="timeout"):
            kind(tmp_path, timeout=timeout)


@either
def test_a_daemon_that_does_not_answer_is_waited_for_so_long_only(served: Served, connect: Opened) -> None:
    with connect(served.path) as client, connect(served.path, timeout=0.2) as other:
        client.status()
        client.timeout = 0.2
        with served.stopped():
            for late in (client, other):  # one that is connected, and one that is not
                error = raised(late.register_module, module("acme.m"))
                assert isinstance(error, WriterTimeoutError)
                assert "0.2 s" in str(error)


@either
def test_a_call_repeated_after_its_time_has_the_effect_of_once(served: Served, connect: Opened) -> None:
    calls = [
        ("register_module", (module("acme.m"),), {"expected_version": 0}),
        ("register_module", (module("acme.m", category="second"),), {"expected_version": 1}),
        ("set_alias", ("short", "acme.m"), {}),
        ("remove_alias", ("short",), {}),
        ("rename_module", ("acme.m", "acme.n"), {}),
        ("unregister_module", ("acme.n",), {}),
    ]
    with connect(served.path) as client:
        client.status()
        for revision, (name, given, named) in enumerate(calls, 2):
            client.timeout = 0.05
            with served.stopped():
                assert isinstance(raised(getattr(client, name), *given, **named), WriterTimeoutError)
            client.timeout = PATIENT
            assert getattr(client, name)(*given, **named) == revision
        assert client.revision == revision


@either
def test_another_call_after_a_timeout_is_another_request(served: Served, connect: Opened) -> None:
    with connect(served.path) as client, Registry(served.path) as registry:
        client.status()
        client.timeout = 0.05
        with served.stopped():
            assert isinstance(raised(client.register_module, module("acme.m")), WriterTimeoutError)
        client.timeout = PATIENT
        client.register_module(module("acme.n"))
        assert registry["acme.n"] == module("acme.n")


@either
def test_a_client_outlives_its_daemon(registry_folder: Path, connect: Opened) -> None:
    with connect(registry_folder) as client:
        for generation in range(3):
            with daemon(registry_folder) as served:
                client.register_module(module(f"acme.m{generation}"))
                assert client.status().pid == served.pid
                if generation % 2:
                    served.kill()
                else:
                    assert served.end() == 0
        client.timeout = 0.2
        lost = raised(client.register_module, module("acme.last"))
        assert isinstance(lost, WriterUnavailableError)
        client.timeout = PATIENT
        with daemon(registry_folder), Registry(registry_folder) as registry:
            client.register_module(module("acme.last"))
            assert sum(name.startswith("acme.") for name in registry) == 4


@either
def test_a_call_waits_for_a_daemon_that_is_started_again(registry_folder: Path, connect: Opened) -> None:
    with connect(registry_folder) as client:
        with daemon(registry_folder) as served:
            client.register_module(module("acme.m"))
            served.kill()
        done: list[Any] = []
        calling = threading.Event()

        def call() -> None:
            calling.set()
            done.append(client.register_module(module("acme.n")))

        thread = threading.Thread(target=call)
        thread.start()
        assert calling.wait(PATIENT)
        with daemon(registry_folder):
            thread.join()
        assert done == [3]


@either
def test_a_closed_client_says_so(served: Served, connect: Opened) -> None:
    client = connect(served.path)
    client.register_module(module("acme.m"))
    client.close()
    client.close()
    assert isinstance(raised(client.register_module, module("acme.n")), StoreClosedError)
    client.__exit__(None, None, None)


def test_reprs_are_worth_reading(tmp_path: Path) -> None:
    assert repr(WriterClient(tmp_path)) == f"WriterClient({str(tmp_path)!r}, timeout=10.0)"
    assert repr(AsyncWriterClient(tmp_path, timeout=None)) == f"AsyncWriterClient({str(tmp_path)!r}, timeout=None)"


# Threads and forks


def test_threads_share_a_client(served: Served) -> None:
    def work(number: int) -> None:
        for version in range(20):
            client.register_module(module(f"acme.t{number}", category=f"c{version}"), expected_version=version)

    with served.client() as client, Registry(served.path) as registry:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {registry.describe(f"acme.t{number}").provenance.version for number in range(32)} == {20}
        assert client.status().connections <= 33


def fork_with_clients(path: str) -> None:
    """A parent and its forked child go on with the same clients, each over connections of its own."""
    loop = asyncio.new_event_loop()
    client, later = WriterClient(path), AsyncWriterClient(path)
    client.register_module(module("acme.before"))
    loop.run_until_complete(later.register_module(module("acme.before")))
    child_pid = os.fork()
    name = "child" if child_pid == 0 else "parent"
    if child_pid == 0:
        loop = asyncio.new_event_loop()
    for version in range(50):
        client.register_module(module(f"{name}.sync", category=f"c{version}"), expected_version=version)
        loop.run_until_complete(
            later.register_module(module(f"{name}.async", category=f"c{version}"), expected_version=version)
        )
    if child_pid == 0:
        os._exit(0)
    assert os.waitpid(child_pid, 0)[1] == 0
    loop.run_until_complete(later.close())
    client.close()


def test_a_forked_child_has_connections_of_its_own(served: Served) -> None:
    run(__name__, "fork_with_clients", served.path)
    with Registry(served.path) as registry:
        for name in ("child.sync", "child.async", "parent.sync", "parent.async"):
            assert registry.describe(name).provenance.version == 50


# Asyncio


def test_concurrent_calls_travel_together_and_in_order(registry_folder: Path) -> None:
    async def many() -> tuple[list[int], int]:
        async with AsyncWriterClient(registry_folder, timeout=PATIENT) as client:
            calls = [client.register_module(module("acme.m", category=f"c{n}"), expected_version=n) for n in range(500)]
            return await asyncio.gather(*calls), (await client.status()).groups

    with daemon(registry_folder), Registry(registry_folder) as registry:
        revisions, groups = asyncio.run(many())
        assert revisions == sorted(revisions)
        assert groups < 500
        assert registry.describe("acme.m").provenance.version == 500
        assert registry["acme.m"].category == "c499"


def test_a_cancelled_call_leaves_the_others_alone(registry_folder: Path) -> None:
    async def cancel_some() -> None:
        async with AsyncWriterClient(registry_folder, timeout=PATIENT) as client:
            await client.status()
            tasks = [asyncio.ensure_future(client.register_module(module(f"acme.m{n}"))) for n in range(200)]
            await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(answer, asyncio.CancelledError) == (n % 3 == 0) for n, answer in enumerate(done))
            for n in range(0, 200, 3):  # called again, each takes effect once
                await client.register_module(module(f"acme.m{n}"))

    with daemon(registry_folder), Registry(registry_folder) as registry:
        asyncio.run(cancel_some())
        assert {registry.describe(f"acme.m{n}").provenance.version for n in range(200)} == {1}


def use_one_loop_after_the_other(path: str) -> None:
    client = AsyncWriterClient(path)
    for version in range(3):
        asyncio.run(client.register_module(module("acme.m", category=f"c{version}"), expected_version=version))
    say("done")


def test_one_client_in_one_loop_after_the_other(served: Served) -> None:
    """In a process of its own: a loop that ends leaves its connections open, of which asyncio warns."""
    assert run(__name__, "use_one_loop_after_the_other", served.path) == ["done"]


def test_closing_ends_the_calls_that_wait(served: Served) -> None:
    async def close_early() -> None:
        client = AsyncWriterClient(served.path, timeout=PATIENT)
        await client.status()
        with served.stopped():
            tasks = [asyncio.ensure_future(client.register_module(module(f"acme.m{n}"))) for n in range(100)]
            await asyncio.sleep(0)
            await client.close()
            done = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, StoreClosedError) for answer in done)

    asyncio.run(close_early())
