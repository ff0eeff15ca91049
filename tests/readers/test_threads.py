"""Threads share one registry without a stale or torn read (I16), and may close it under each other's hands."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, StoreClosedError
from tests.support.histories import Observation


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    """Let threads take turns a thousand times as often as usual."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(*works: Callable[[], object]) -> None:
    """Run each in a thread of its own, all from the same moment on; raise what went wrong in one."""
    wrong: list[BaseException] = []
    start = threading.Barrier(len(works))

    def guarded(work: Callable[[], object]) -> None:
        try:
            start.wait()
            work()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in wrong:
        raise error


def until_closed(work: Callable[[int], object]) -> None:
    """Work on and on, until it is told that what it works with was closed: no other error will do."""
    with suppress(StoreClosedError):
        for number in count():
            work(number)


@pytest.mark.parametrize("failpoints", ["", "before_commit=sleep:1"], ids=["fast", "slow disk"])
@pytest.mark.parametrize("commits", [30, pytest.param(80, marks=pytest.mark.full)])
def test_i16_every_thread_of_a_shared_registry_reads_fresh_and_never_goes_back(
    registry_folder: Path, failpoints: str, commits: int
) -> None:
    with Observation(registry_folder, 6, commits, (8192, 6), threads=4) as observation:
        while not observation.is_done:
            assert observation.let_write(commits // 2, failpoints) == 0
        observation.finish()


@pytest.mark.parametrize("cache_size", [0, 1, 8192])
def test_i16_threads_read_what_another_thread_of_the_process_has_just_written(
    registry_folder: Path, cache_size: int
) -> None:
    """Writer and readers in one process share its LMDB environment."""
    others = [f"a.Other{number}" for number in range(20)]
    acknowledged, rounds = [0], 60
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder, cache_size=cache_size) as registry:
        writer.register_modules([ModuleInfo(name, estimated_duration=0) for name in ("a.Watched", *others)])

        def write() -> None:
            for number in range(1, rounds + 1):
                words = (f"round_{number % 2}",)
                writer.register_module(ModuleInfo("a.Watched", capabilities=words, estimated_duration=number))
                acknowledged[0] = number

        def read() -> None:
            last = 0
            while last < rounds:
                known = acknowledged[0]
                found = registry.get_module("a.Watched").estimated_duration
                assert found >= max(known, last)
                last = found
                assert [registry.get_module(name).name for name in others] == others
                with registry.snapshot() as snapshot:
                    info = snapshot.get_module("a.Watched")
                    assert info.estimated_duration >= last
                    assert [word for word in ("round_0", "round_1") if snapshot.find_by_capability(word)] == list(
                        info.capabilities
                    )

        at_once(write, *[read] * 4)


@pytest.mark.stress
@pytest.mark.parametrize("seed", range(6))
def test_many_histories_of_threads(registry_folder: Path, seed: int) -> None:
    with Observation(registry_folder, seed, 1000, (8192, 64, 6, 0), threads=8) as observation:
        while not observation.is_done:
            observation.let_write(100, "before_commit=sleep:1" if seed % 2 else "")
        observation.finish()


@pytest.fixture
def folder(registry_folder: Path) -> Path:
    with RegistryWriter(registry_folder) as writer:
        writer.register_modules([ModuleInfo(f"a.M{i}", metadata={"text": "x" * 3000}) for i in range(200)])
    return registry_folder


@pytest.mark.parametrize("cache_size", [0, 50, 8192])
def test_i16_a_registry_closed_in_the_midst_of_reads_says_so_and_no_more(folder: Path, cache_size: int) -> None:
    def read(registry: Registry, number: int) -> None:
        registry.get_module(f"a.M{(number * 7) % 200}")
        registry.find(pool_type="neural")
        with registry.snapshot() as snapshot:
            assert len(snapshot) == 206

    def close(registry: Registry, reads: int) -> None:
        for number in range(reads):
            registry.get_module(f"a.M{number % 200}")
        registry.close()

    for reads in range(0, 125, 5):
        registry = Registry(folder, cache_size=cache_size)
        at_once(partial(close, registry, reads), *[partial(until_closed, partial(read, registry))] * 3)


def test_i16_registries_opened_and_closed_by_many_threads_share_one_environment(folder: Path) -> None:
    def open_and_read() -> None:
        for i in range(40):
            with Registry(folder, cache_size=i % 3) as registry, registry.snapshot() as snapshot:
                assert registry.get_module(f"a.M{i}") == snapshot[f"a.M{i}"]

    at_once(*[open_and_read] * 6)


def test_i16_snapshots_left_to_the_collector_lock_nobody_out(folder: Path) -> None:
    """A finalizer runs anywhere, inside a gate too."""
    with RegistryWriter(folder) as writer, Registry(folder) as registry:

        def drop_snapshots() -> None:
            for _ in range(60):
                cycle: list[object] = [registry.snapshot(), Registry(folder)]
                cycle.append(cycle)

        def read() -> None:
            for i in range(200):
                registry.find(capabilities=(f"c{i}",))

        def write() -> None:
            for i in range(60):
                writer.register_module(ModuleInfo("a.M1", estimated_duration=i))

        threshold = gc.get_threshold()
        gc.set_threshold(5, 2, 2)
        try:
            at_once(drop_snapshots, drop_snapshots, read, read, write)
        finally:
            gc.set_threshold(*threshold)
        gc.collect()
        with registry.snapshot():
            pass
        assert writer.store.environment.open_snapshots == 0


def test_i16_threads_that_write_are_put_in_an_order(folder: Path) -> None:
    revisions: list[int] = []
    with RegistryWriter(folder) as writer:
        first = writer.revision

        def write(who: int) -> None:
            revisions.extend(writer.register_module(ModuleInfo(f"t{who}.M", estimated_duration=i)) for i in range(30))

        at_once(*[lambda who=who: write(who) for who in range(4)])
        assert sorted(revisions) == list(range(first + 1, first + 121))


def test_i16_a_writer_closed_in_the_midst_of_writes_has_acknowledged_all_that_is_there(folder: Path) -> None:
    def write(writer: RegistryWriter, acknowledged: list[int], number: int) -> None:
        writer.register_module(ModuleInfo("a.Last", estimated_duration=number))
        acknowledged.append(number)

    def close(writer: RegistryWriter, acknowledged: list[int]) -> None:
        while len(acknowledged) < 5:
            pass
        writer.close()
        with RegistryWriter(folder) as next_one:  # the writer lock is free, and nobody writes without it
            next_one.register_module(ModuleInfo("a.Next"))

    for _ in range(10):
        writer, acknowledged = RegistryWriter(folder), [0]
        work = partial(until_closed, partial(write, writer, acknowledged))
        at_once(work, partial(close, writer, acknowledged))
        with Registry(folder) as registry:
            assert registry["a.Last"].estimated_duration == acknowledged[-1]
