"""Forks again and again: amid threads, by pools of every kind, without a leak, and never stuck (I15)."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Registry, RegistryWriter
from tests.support import forks
from tests.support.forks import NAMES, await_all, durations, fork, slots, update
from tests.support.processes import run

folder = forks.folder


# Threads


class Threads:
    """Threads that repeat their work until they are stopped; what goes wrong in one is told then."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self._wrong: list[BaseException] = []
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=(work,)) for work in works]

    def _repeat(self, work: Callable[[], object]) -> None:
        try:
            while not self._is_over.is_set():
                work()
        except BaseException as error:
            self._wrong.append(error)

    def __enter__(self) -> None:
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        for error in self._wrong:
            raise error


def forks_amid_threads(folder: str) -> None:
    """Threads read in every way, and another one writes, while the main thread forks again and again."""
    shared = Registry(folder)
    rounds = iter(range(10**9))

    def uncached() -> None:
        with Registry(folder, cache_size=0) as registry:
            for name in NAMES:
                registry.get_module(name)

    def of_a_snapshot() -> None:
        with shared.snapshot() as snapshot:
            assert len(durations(snapshot)) == 1

    def in_child() -> None:
        assert len(durations(shared)) >= 1
        of_a_snapshot()
        assert len(Registry(folder)) == 56

    with RegistryWriter(folder) as writer:
        works = (uncached, lambda: durations(shared), lambda: update(writer, next(rounds)), lambda: list(shared))
        with Threads(*works):
            for _ in range(12):
                await_all(fork(in_child), fork(in_child))
                of_a_snapshot()


def test_i15_forks_amid_threads_that_read_and_write(folder: Path) -> None:
    run(__name__, "forks_amid_threads", folder)


def forks_often(folder: str) -> None:
    with Registry(folder) as registry:
        durations(registry)
        await_all(fork(lambda: None))
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(60):
            await_all(fork(lambda: registry.get_module("a.M1")))
            registry.get_module("a.M2")
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert slots(folder).count(os.getpid()) <= 3


def test_i15_forking_often_leaks_nothing(folder: Path) -> None:
    run(__name__, "forks_often", folder)


def warns_of_nothing(folder: str) -> None:
    import warnings

    warnings.simplefilter("error")  # since 3.12 a fork warns where there are threads: we start none
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        update(writer, 1)
        await_all(fork(lambda: durations(registry)))


def test_i15_reading_and_writing_start_no_threads(folder: Path) -> None:
    run(__name__, "warns_of_nothing", folder)


# multiprocessing


opened: list[Registry] = []


def ask_in_pool(argument: tuple[str, str]) -> int:
    """In a worker: with what it inherited, or what it opens itself."""
    folder, name = argument
    if not opened:
        opened.append(Registry(folder))
    return opened[0].get_module(name).estimated_duration


def asks_in_pools(folder: str, method: str) -> None:
    opened.append(Registry(folder))
    opened[0].get_module("a.M1")
    with RegistryWriter(folder) as writer:
        context: Any = multiprocessing.get_context(method)
        with context.Pool(3) as pool:
            for duration in range(1, 5):
                update(writer, duration)
                assert set(pool.map(ask_in_pool, [(folder, name) for name in NAMES], chunksize=5)) == {duration}
                assert durations(opened[0]) == {duration}


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_i15_pools_of_every_kind(folder: Path, method: str) -> None:
    run(__name__, "asks_in_pools", folder, method)


def forks_amid_a_crowded_cache(folder: str) -> None:
    """Each read by another thread may be one that keeps its record, for which it takes the gate."""
    with Registry(folder, cache_size=1) as registry, Threads(*[lambda: durations(registry)] * 3):
        for _ in range(40):
            await_all(fork(lambda: durations(registry)))


def test_i15_keeping_a_record_never_waits_in_flight_for_the_gate(folder: Path) -> None:
    """A fork holds the gate until nothing is in flight: who is in flight and wants the gate would stop both."""
    run(__name__, "forks_amid_a_crowded_cache", folder)
