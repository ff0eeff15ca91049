"""Limits as a registry gives them: by the policies in force, from threads, tasks and forked workers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from dspy_registry import (
    InvalidArgumentError,
    LimitReachedError,
    Policy,
    Registry,
    RegistryWriter,
    UnknownModuleError,
)
from tests.support.daemon_process import daemon
from tests.support.forks import await_all, fork
from tests.support.health_helpers import NAME, until
from tests.support.processes import child, requests, say

OTHER = "dspy.ReAct"
FEW = 2


@pytest.fixture
def folder(seeded_registry: Path) -> Path:
    """`dspy.Predict` may be called twice at once."""
    with RegistryWriter(seeded_registry) as writer:
        writer.set_policy(NAME, Policy(max_concurrency=FEW))
    return seeded_registry


@pytest.fixture
def registry(folder: Path) -> Iterator[Registry]:
    with Registry(folder) as registry:
        yield registry


def hold(path: str, calls: int) -> None:
    """A worker with so many calls under way, until it is told to end."""
    with Registry(path) as registry, ExitStack() as held:
        for _ in range(calls):
            held.enter_context(registry.limit(NAME, patience=0))
        say("holds")
        for _ in requests():
            break


def test_a_module_without_a_policy_has_no_limit(registry: Registry) -> None:
    with ExitStack() as held:
        for _ in range(50):
            held.enter_context(registry.limit(OTHER, patience=0))
    assert registry.policy(OTHER) == Policy()
    assert registry.limited_calls() == []


def test_i28_no_call_begins_beyond_the_limit_in_any_process(folder: Path, registry: Registry) -> None:
    with child(__name__, "hold", folder, 1) as worker:
        assert worker.hear() == "holds"
        with registry.limit("Predict", patience=0):  # a short name has the limit of its module
            with pytest.raises(LimitReachedError) as caught, registry.limit(NAME, patience=0.01):
                pass
            assert caught.value.limit == f"module:{NAME}"
            assert {holder.pid for holder in registry.limited_calls()} == {os.getpid(), worker.pid}
        worker.kill()
        with registry.limit(NAME, patience=10), registry.limit(NAME, patience=10):
            pass


def test_a_limit_follows_its_policy(folder: Path, registry: Registry) -> None:
    with daemon(folder) as served, served.client() as client, registry.limit(NAME, patience=0):
        client.set_policy(NAME, Policy(max_concurrency=1))
        with pytest.raises(LimitReachedError), registry.limit(NAME, patience=0):
            pass
        client.set_policy("dspy.*", Policy(max_concurrency=3))
        with pytest.raises(LimitReachedError), registry.limit(NAME, patience=0):  # its own name wins
            pass
        client.remove_policy(NAME)
        assert registry.policy(NAME).max_concurrency == 3
        with registry.limit(NAME, patience=0), registry.limit(NAME, patience=0):
            pass
        client.remove_policy("dspy.*")
        assert registry.policy(NAME) == Policy()


def test_modules_of_a_pool_share_its_limit(folder: Path, registry: Registry) -> None:
    pool = registry.get_pool_type(NAME)
    assert registry.get_pool_type(OTHER) == pool
    with daemon(folder) as served, served.client() as client:
        client.set_policy(f"pool:{pool}", Policy(max_concurrency=1))
        with registry.limit(OTHER, patience=0):
            with pytest.raises(LimitReachedError) as caught, registry.limit(NAME, patience=0):
                pass
            assert caught.value.limit == f"pool:{pool}"
        assert registry.policy(NAME).max_concurrency == FEW


def test_threads_wait_in_turn(registry: Registry) -> None:
    most, now = 0, 0

    def call(_: int) -> None:
        nonlocal most, now
        with registry.limit(NAME, patience=60):
            now += 1
            most = max(most, now)
            time.sleep(0.001)
            now -= 1

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(40)))
    assert 1 <= most <= FEW
    assert registry.limited_calls() == []


def test_tasks_wait_in_turn(registry: Registry) -> None:
    async def all_of_them() -> int:
        most, now = 0, 0

        async def call() -> None:
            nonlocal most, now
            async with registry.alimit(NAME, patience=60):
                now += 1
                most = max(most, now)
                await asyncio.sleep(0.001)
                now -= 1

        await asyncio.gather(*(call() for _ in range(20)))
        return most

    assert 1 <= asyncio.run(all_of_them()) <= FEW


def test_a_task_is_refused_too(registry: Registry) -> None:
    async def refused() -> None:
        with registry.limit(NAME), registry.limit(NAME), pytest.raises(LimitReachedError):
            async with registry.alimit(NAME, patience=0.01):
                pass

    asyncio.run(refused())


def test_a_forked_worker_has_no_call_of_its_parent(registry: Registry) -> None:
    def work() -> None:
        with registry.limit(NAME, patience=0), pytest.raises(LimitReachedError), registry.limit(NAME, patience=0):
            pass

    with registry.limit(NAME, patience=0):
        await_all(fork(work))
        assert len(registry.limited_calls()) == 1


def test_a_worker_that_is_stopped_keeps_its_call(folder: Path, registry: Registry) -> None:
    with child(__name__, "hold", folder, FEW) as worker:
        assert worker.hear() == "holds"
        os.kill(worker.pid, 19)
        with pytest.raises(LimitReachedError), registry.limit(NAME, patience=0.05):
            pass
        os.kill(worker.pid, 18)
    until(lambda: not registry.limited_calls())


def test_two_registries_of_one_process_share_the_limit(folder: Path, registry: Registry) -> None:
    with Registry(folder) as other, registry.limit(NAME, patience=0), other.limit(NAME, patience=0):
        third = other.limit(NAME, patience=0)
        with pytest.raises(LimitReachedError), third:
            pass


def test_bad_questions_are_refused(registry: Registry) -> None:
    with pytest.raises(UnknownModuleError):
        registry.limit("acme.Nothing")
    with pytest.raises(InvalidArgumentError):
        registry.limit(NAME, patience=-1)
    with pytest.raises(TypeError):
        registry.limit(None)  # type: ignore[arg-type]


def test_a_snapshot_has_the_policies_of_its_revision(folder: Path, registry: Registry) -> None:
    with daemon(folder) as served, served.client() as client, registry.snapshot() as snapshot:
        client.remove_policy(NAME)
        assert snapshot.policy("Predict").max_concurrency == FEW
        assert registry.policy(NAME).max_concurrency is None
        assert list(snapshot.policies()) == [("client", NAME)]


def test_the_longest_timeout_bounds_what_is_recommended(folder: Path, registry: Registry) -> None:
    assert registry.routing_recommendation(NAME, basis="auto").timeout > 5
    with daemon(folder) as served, served.client() as client:
        client.set_policy(NAME, Policy(max_timeout=0.005))
        assert registry.routing_recommendation(NAME, basis="auto").timeout == 5
        assert registry.routing_recommendation(NAME, basis="observed").timeout == 5
