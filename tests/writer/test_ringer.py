"""A commit wakes those who sleep on the bell, with a thread, which it starts for that alone."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.registry_store import futex
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.writer.ringer import Ringer
from tests.support.forks import await_all, fork

pytestmark = pytest.mark.skipif(not futex.is_available(), reason="those who wait poll")


@pytest.fixture
def created(registry_folder: Path) -> Path:
    RegistryWriter(registry_folder).close()
    return registry_folder


def is_ringing() -> bool:
    return any(thread.name == "registry ringer" for thread in threading.enumerate())


@contextmanager
def sleepers(folder: Path, count: int) -> Iterator[list[bool]]:
    """So many threads that sleep on the bell. Each adds what it was woken by: the number had changed, or it had not."""
    files = [RevisionFile(folder) for _ in range(count)]
    woken: list[bool] = []
    asleep = threading.Barrier(count + 1)

    def sleep(file: RevisionFile) -> None:
        seen = file.bell.value
        asleep.wait()
        while file.bell.value == seen:
            file.sleep(seen, 1.0)
        woken.append(True)

    threads = [threading.Thread(target=sleep, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    asleep.wait()
    yield woken
    for thread in threads:
        thread.join()


def test_a_writer_without_watchers_needs_no_thread(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        for number in range(20):
            before = RevisionFile(registry_folder).bell.value
            writer.register_module(ModuleInfo("acme.One", metadata={"n": number}))
            assert RevisionFile(registry_folder).bell.value != before
            assert not is_ringing()


@pytest.mark.parametrize("count", [1, 2, 12])
def test_all_are_woken_however_many_there_are(created: Path, count: int) -> None:
    file = RevisionFile(created, writable=True)
    ringer = Ringer(file)
    with sleepers(created, count) as woken:
        ringer.ring()
    assert len(woken) == count
    ringer.end()
    assert not is_ringing()


def test_the_thread_wakes_them_and_where_there_can_be_none_the_commit_does(
    created: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = RevisionFile(created, writable=True)
    file.bell.announce()
    rung: list[str] = []
    answers = iter([False, True, True])
    monkeypatch.setattr(file.bell, "set_aside", lambda: next(answers))
    monkeypatch.setattr(file.bell, "wake_aside", lambda: rung.append(threading.current_thread().name))
    ringer = Ringer(file)
    ringer.ring()
    assert rung == []
    ringer.ring()
    ringer.end()
    assert set(rung) == {"registry ringer"}  # the end wakes once more where the thread was quicker than it
    monkeypatch.setattr(threading.Thread, "start", _refuse)
    ringer.ring()
    assert rung[-1] == "MainThread"


def _refuse(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_each_ring_raises_the_bell_once_and_only_in_the_thread_that_commits(created: Path) -> None:
    file = RevisionFile(created, writable=True)
    ringer = Ringer(file)
    with sleepers(created, 12):
        before = file.bell.value
        ringer.ring()
        ringer.end()
    assert file.bell.value == before + 1


def test_sleepers_of_other_processes_are_woken(created: Path) -> None:
    file = RevisionFile(created, writable=True)
    seen = file.bell.value
    ready, began = os.pipe()

    def sleep() -> None:
        mine = RevisionFile(created)
        os.write(began, b"x")
        while mine.bell.value == seen:
            mine.sleep(seen, 1.0)

    children = [fork(sleep) for _ in range(8)]
    for _ in children:
        os.read(ready, 1)
    time.sleep(0.01)
    Ringer(file).ring()
    await_all(*children)
    os.close(ready)
    os.close(began)
