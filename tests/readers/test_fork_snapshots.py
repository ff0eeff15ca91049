"""Snapshots of other threads, and snapshots that an interrupt left behind, cost a forked child nothing (I15)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ForkedSnapshotError, Registry
from dspy_registry.registry_store import fork_wait
from dspy_registry.registry_store.sharing import run_deferred
from tests.support import forks
from tests.support.forks import await_all, durations, fork
from tests.support.interrupts import interrupted_everywhere
from tests.support.processes import run, say

folder = forks.folder


@pytest.fixture
def registry(folder: Path) -> Iterator[Registry]:
    with Registry(folder, cache_size=0) as registry:
        yield registry


@pytest.mark.parametrize("pause", [0.0, 0.002])
def test_i15_a_fork_waits_for_the_snapshots_of_other_threads(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """One thread or another holds one nearly all the time. How long a fork waits at most is not what this is about."""
    monkeypatch.setattr(fork_wait, "PATIENCE", 60.0)
    over = threading.Event()

    def query() -> None:
        while not over.is_set():
            with registry.snapshot() as snapshot:
                assert durations(snapshot) == {0}
                time.sleep(pause)

    threads = [threading.Thread(target=query) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            await_all(fork(lambda: durations(registry)))
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_i15_a_snapshot_that_another_thread_keeps_delays_a_fork_and_no_more(registry: Registry) -> None:
    held, over = threading.Event(), threading.Event()

    def keep() -> None:
        with registry.snapshot():
            held.set()
            over.wait()

    def find_out() -> None:
        with pytest.raises(ForkedSnapshotError):
            registry.get_module("a.M1")

    thread = threading.Thread(target=keep)
    thread.start()
    held.wait()
    await_all(fork(find_out))
    assert durations(registry) == {0}
    over.set()
    thread.join()
    await_all(fork(lambda: durations(registry)))


def interrupt_at_every_line(path: str) -> None:
    """Raises KeyboardInterrupt at each line of ours in turn; afterwards nothing may count as open."""
    registry = Registry(path, cache_size=0)
    environment = registry._environment
    assert environment is not None

    def snapshot() -> None:
        with registry.snapshot() as snapshot:
            assert snapshot.revision

    def dropped() -> None:
        registry.snapshot()

    def history() -> None:
        registry.history("a.M1")

    def is_closed() -> bool:
        run_deferred()
        return environment.open_snapshots == 0

    for work in (snapshot, dropped, history):
        say(interrupted_everywhere(work, is_closed))
    await_all(fork(lambda: durations(registry)))
    say("done")


def test_i15_interrupted_snapshots_do_not_stay_open(folder: Path) -> None:
    said = run(__name__, "interrupt_at_every_line", folder)
    assert said.pop() == "done"
    assert min(said) > 20
