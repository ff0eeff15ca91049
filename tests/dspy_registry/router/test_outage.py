"""Workers of one host, a real daemon, and a provider that fails: who still calls it, and who must not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Policy, Registry, RegistryWriter, WriterClient
from tests.support import routed_workers
from tests.support.daemon_process import daemon
from tests.support.health_helpers import states, until
from tests.support.processes import Process, child
from tests.support.routed_workers import ERROR, HANG, LIMITED, OK, Provider

FAST, DEEP = "acme.Fast", "acme.Deep"
LONG = 3600.0
ENOUGH_OF_TWENTY = 10
"""Failures that open a circuit whatever was before."""


@pytest.fixture
def path(registry_folder: Path) -> Path:
    with RegistryWriter(registry_folder) as writer:
        for name, milliseconds in ((FAST, 1_500), (DEEP, 10_000)):
            writer.register_module(ModuleInfo(name, estimated_duration=milliseconds))
    return registry_folder


@pytest.fixture
def provider(tmp_path: Path) -> Provider:
    provider = Provider(tmp_path)
    provider.become(OK)
    return provider


class Workers:
    """Several processes that call at the same time."""

    def __init__(self, processes: list[Process]) -> None:
        self._processes = processes
        for process in processes:
            assert process.hear() == "ready"

    def __len__(self) -> int:
        return len(self._processes)

    def call(self, count: int = 1) -> list[tuple[str, list[str]]]:
        """Each calls so often: which module answered, and how each attempt ended."""
        for process in self._processes:
            process.tell(count)
        answers: list[Any] = [process.hear() for process in self._processes]
        assert None not in answers, "a worker ended"
        return [(name, kinds) for found in answers for name, kinds in found]


@pytest.fixture
def start(path: Path, tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def started(count: int, function: str = "work") -> Workers:
            module = routed_workers.__name__
            return Workers([stack.enter_context(child(module, function, path, tmp_path)) for _ in range(count)])

        yield started


def outage(path: Path, provider: Provider, workers: Workers, mode: str) -> None:
    """From the first failure until the provider is back: no request fails, and few calls reach the provider."""
    provider.become(mode)
    for _ in range(1 if mode == LIMITED else -(-ENOUGH_OF_TWENTY // len(workers))):
        assert all(kinds[-1] == "ok" for _, kinds in workers.call())
    until(lambda: states(path).get((FAST, 1)) == "open")
    before = provider.count
    assert before <= 20
    for _ in range(3):
        assert workers.call() == [(DEEP, ["ok"])] * len(workers)
    assert provider.count == before


def recover(path: Path, provider: Provider, workers: Workers) -> None:
    """The circuit is half-open by the clock; one process at a time probes; two successes close it."""
    provider.become(OK)
    with WriterClient(path) as client:
        client.open_circuit(FAST, 0.05, 1)
    until(lambda: states(path).get((FAST, 1)) == "half_open")
    until(lambda: (workers.call(), not states(path))[1])
    assert workers.call() == [(FAST, ["ok"])] * len(workers)


def serve_for_long(path: Path) -> None:
    with WriterClient(path) as client:
        client.set_policy("acme.*", Policy(open_seconds=LONG, longest_open_seconds=LONG))


def test_workers_leave_a_failing_provider_and_come_back_to_it(path: Path, provider: Provider, start: Any) -> None:
    with daemon(path):
        serve_for_long(path)
        workers = start(4)
        assert workers.call(2) == [(FAST, ["ok"])] * 8
        outage(path, provider, workers, ERROR)
        recover(path, provider, workers)
        outage(path, provider, workers, LIMITED)
        assert provider.count <= len(workers)  # one answer with a retry-after is enough


def test_the_daemon_may_die_meanwhile(path: Path, provider: Provider, start: Any) -> None:
    with daemon(path) as served:
        serve_for_long(path)
        workers = start(2)
        outage(path, provider, workers, ERROR)
        served.kill()
        assert workers.call() == [(DEEP, ["ok"])] * 2
    before = provider.count
    with daemon(path):
        assert workers.call(3) == [(DEEP, ["ok"])] * 6
        assert provider.count == before
        recover(path, provider, workers)


@pytest.mark.full
@pytest.mark.dspy
def test_eight_workers_of_dspy(path: Path, provider: Provider, start: Any) -> None:
    with daemon(path) as served:
        serve_for_long(path)
        workers = start(8, "work_in_dspy")
        assert workers.call() == [(FAST, ["ok"])] * 8
        for mode in (ERROR, HANG, LIMITED):
            outage(path, provider, workers, mode)
            recover(path, provider, workers)
        outage(path, provider, workers, ERROR)
        served.kill()
    with daemon(path):
        recover(path, provider, workers)
        with Registry(path) as registry:
            until(lambda: registry.usage(FAST).errors > 0)


def test_one_place_under_a_limit_is_held_by_an_abandoned_thread(path: Path, provider: Provider, start: Any) -> None:
    with daemon(path):
        with WriterClient(path) as client:
            client.set_policy(FAST, Policy(max_concurrency=1))
        provider.become(HANG)
        (worker,) = [start(1)]
        assert worker.call() == [(DEEP, ["timeout", "ok"])]
        assert worker.call() == [(DEEP, ["ok"])]  # at its limit: passed over
        assert provider.count == 1
        provider.become(OK)
        until(lambda: worker.call() == [(FAST, ["ok"])])
