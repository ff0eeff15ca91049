"""What was opened for reading before a fork reads on both sides of it, and neither side disturbs the other (I15).

Each scene plays in a process of its own that holds nothing of pytest's; what a forked child finds wrong is its exit
status.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ForkedSnapshotError, Registry, RegistryWriter
from tests.support import forks
from tests.support.forks import NAMES, await_all, durations, fork, free_slots_of_the_dead, slots, update
from tests.support.processes import child, requests, run, say

folder = forks.folder


def keep_writing(folder: str) -> None:
    """A writer that updates all modules at once each time it is told to."""
    with RegistryWriter(folder) as writer:
        say("ready")
        for duration in requests():
            say(update(writer, duration))


# Readers


def reads_on_both_sides(folder: str) -> None:
    for size in (8192, 0):
        registry = Registry(folder, cache_size=size)
        for _ in range(3):
            assert durations(registry) == {0}

        def read(registry: Registry = registry) -> None:
            for _ in range(3):
                assert durations(registry) == {0}
            with registry.snapshot() as snapshot:
                assert durations(snapshot) == {0}
            assert len(registry) == len(NAMES) + 6
            assert os.getpid() in slots(folder)
            await_all(fork(lambda: durations(registry)))  # and a grandchild

        for _ in range(3):
            await_all(*(fork(read) for _ in range(3)))
            read()


def test_i15_parent_children_and_grandchildren_read_what_the_parent_opened(folder: Path) -> None:
    run(__name__, "reads_on_both_sides", folder)


def stays_fresh(folder: str) -> None:
    with child(__name__, "keep_writing", folder) as writing, Registry(folder) as registry:
        assert writing.hear() == "ready"
        for _ in range(3):
            assert durations(registry) == {0}
        from_parent, to_child = os.pipe()

        def follow() -> None:
            for duration in range(1, 6):
                assert os.read(from_parent, 1) == b"."
                assert durations(registry) == {duration}
                assert registry.get_module("predict").name == "dspy.Predict"
                to_parent.send("read")

        hearing, to_parent = multiprocessing.Pipe(duplex=False)
        pid = fork(follow)
        for duration in range(1, 6):
            writing.ask(duration)
            assert durations(registry) == {duration}
            os.write(to_child, b".")
            assert hearing.recv() == "read"
        await_all(pid)


def test_i15_both_sides_see_what_is_acknowledged_after_the_fork(folder: Path) -> None:
    run(__name__, "stays_fresh", folder)


def kills_children(folder: str) -> None:
    """As a prefork server does: the parent opens, the children serve and are killed."""
    with child(__name__, "keep_writing", folder) as writing, Registry(folder) as registry:
        assert writing.hear() == "ready"
        assert durations(registry) == {0}
        ready, tell = os.pipe()

        def serve() -> None:
            snapshot = registry.snapshot()
            durations(snapshot)
            os.write(tell, b".")
            while True:
                durations(registry)

        for duration in range(1, 4):
            with registry.snapshot() as snapshot:
                before = durations(snapshot)
            pids = [fork(serve) for _ in range(3)]
            for _ in pids:
                os.read(ready, 1)
            with registry.snapshot() as snapshot:
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                for pid in pids:
                    os.waitpid(pid, 0)
                free_slots_of_the_dead(folder)
                for _ in range(30):
                    writing.ask(duration)
                assert durations(snapshot) == before
            assert durations(registry) == {duration}
            assert set(slots(folder)) <= {os.getpid(), writing.pid}


def test_i15_a_killed_child_takes_nothing_of_its_parent_along(folder: Path) -> None:
    run(__name__, "kills_children", folder)


# A snapshot that is open at the fork


def forks_with_a_snapshot(folder: str) -> None:
    with child(__name__, "keep_writing", folder) as writing, Registry(folder) as registry:
        assert writing.hear() == "ready"
        snapshot = registry.snapshot()

        def cached() -> None:
            assert registry.get_module("a.M1").name == "a.M1"
            assert registry.find_by_capability("reasoning")

        def in_child(ending: Callable[[], object]) -> None:
            cached()
            for ask in (
                lambda: registry.get_module("a.M2"),
                lambda: registry.find(pool_type="neural"),
                lambda: list(registry),
                lambda: snapshot.get_module("a.M1"),
                lambda: snapshot.raw("a.M1"),
                lambda: list(snapshot),
                registry.snapshot,
                lambda: Registry(folder),
            ):
                with pytest.raises(ForkedSnapshotError):
                    ask()
            ending()

        def close_all() -> None:
            snapshot.close()
            registry.close()
            gc.collect()

        for ending in (lambda: None, close_all, gc.collect, lambda: sys.exit()):
            for _ in range(3):
                cached()
            await_all(fork(lambda ending=ending: leaving(lambda: in_child(ending))))
            for duration in range(20):
                writing.ask(duration)
            assert durations(snapshot) == {0}
            assert len(snapshot) == 56
        snapshot.close()
        assert durations(registry) == {19}
        await_all(fork(lambda: durations(registry)))  # without a snapshot all is well again


def leaving(work: Callable[[], object]) -> None:
    """Leave as a process does that ends by itself."""
    with suppress(SystemExit):
        work()


def test_i15_a_snapshot_stays_its_parents_and_the_child_is_told(folder: Path) -> None:
    run(__name__, "forks_with_a_snapshot", folder)


def forks_after_dropping_a_snapshot(folder: str) -> None:
    with Registry(folder) as registry:
        snapshot: Any = registry.snapshot()
        holder = [snapshot]
        holder.append(holder)  # a cycle: nobody closes it but the collector
        del snapshot, holder
        gc.collect()
        await_all(fork(lambda: durations(registry)))
        assert durations(registry) == {0}


def test_i15_a_snapshot_that_nobody_holds_any_more_costs_the_child_nothing(folder: Path) -> None:
    run(__name__, "forks_after_dropping_a_snapshot", folder)
