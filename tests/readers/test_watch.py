"""Watching: woken when a commit is acknowledged, told what concerns the names, and never a lost change."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Change, LabelUpdate, ModuleInfo, Registry, RegistryWriter, StoreClosedError
from dspy_registry.readers import waiting, watch
from dspy_registry.registry_store import futex, layout
from dspy_registry.registry_store.layers import Layer
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.writer import commit

PATIENCE = 60


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter) -> Iterator[Registry]:
    with Registry(writer.store.folder) as registry:
        yield registry


def register(writer: RegistryWriter, name: str, duration: int = 1) -> int:
    return writer.register_module(ModuleInfo(name, estimated_duration=duration))


def told(registry: Registry, since: int, **arguments: Any) -> list[Change]:
    return list(registry.watch(since, timeout=0, **arguments))


# What is told


def test_only_what_concerns_the_names_is_told(writer: RegistryWriter, registry: Registry) -> None:
    since = registry.revision
    register(writer, "acme.Qa")
    register(writer, "other.Qa")
    writer.set_alias("short", "acme.Qa")
    writer.set_alias("long", "other.Qa")
    writer.set_labels([LabelUpdate("acme.Qa", "champion", 1), LabelUpdate("other.Qa", "champion", 1)])
    writer.store.committer.commit(lambda draft: draft.declare("acme.L", Layer("manifest:a.toml", {"category": "x"})))
    register(writer, "acme.L")
    writer.set_implications({"x": ("y",)})
    changes = told(registry, since, names="acme.*")
    assert [change.revision - since for change in changes] == [1, 3, 5, 6, 7]
    named = [module.name for change in changes for module in change.modules]
    assert named == ["acme.Qa", "acme.L", "acme.L"]
    assert [label.name for change in changes for label in change.labels] == ["acme.Qa"]
    assert [alias.alias for change in changes for alias in change.aliases] == ["short"]
    assert [change.overrides for change in changes][-1] == ("acme.L",)
    assert all("other" not in key for change in changes for key in change.keys)
    assert [change.revision - since for change in told(registry, since, names=("other.Qa", "long"))] == [2, 4, 5]
    assert told(registry, since, names=()) == []
    assert len(told(registry, since)) >= 7
    for wrong in (7, b"acme", ["acme", 3]):
        with pytest.raises(TypeError):
            registry.watch(names=wrong)  # type: ignore[call-overload]


def test_records_come_with_the_changes_that_made_them(writer: RegistryWriter, registry: Registry) -> None:
    since = registry.revision
    for duration in (1, 2, 3):
        register(writer, "acme.Qa", duration)
    writer.unregister_module("acme.Qa")
    changes = list(registry.watch(since, records=True, timeout=0))
    assert [
        [(name, kept.provenance.version, kept.info.estimated_duration) for name, kept in change.records.items()]
        for change in changes
    ] == [[("acme.Qa", 1, 1)], [("acme.Qa", 2, 2)], [("acme.Qa", 3, 3)], []]


def test_what_the_log_dropped_is_told_whatever_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHANGES_KEPT", 4)  # the check would miss the others, so no fixture looks here
    monkeypatch.setattr(commit, "_DROPPED_AT_ONCE", 1)
    with RegistryWriter(tmp_path / "short") as writer, Registry(tmp_path / "short") as registry:
        for duration in range(1, 9):
            register(writer, "acme.Qa", duration)
        first, *_ = told(registry, 1, names="nothing.of.that.name")
        assert first.everything


# Being woken


class Watcher(threading.Thread):
    """Watches in a thread until it has heard of a module."""

    def __init__(self, registry: Registry, last: str, **arguments: Any) -> None:
        super().__init__(daemon=True)
        self.heard: list[Change] = []
        self._changes = registry.watch(timeout=PATIENCE, **arguments)
        self._last = last
        self.start()

    def run(self) -> None:
        for change in self._changes:
            self.heard.append(change)
            if any(module.name == self._last for module in change.modules):
                return


def watching_threads() -> int:
    return sum(thread.name == "registry watcher" for thread in threading.enumerate())


def until(condition: Callable[[], bool]) -> None:
    for _ in range(PATIENCE * 100):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not come about")


def ringing_threads() -> int:
    return sum(thread.name == "registry ringer" for thread in threading.enumerate())


@pytest.mark.skipif(not futex.is_available(), reason="this system has no futex")
def test_a_writer_that_nobody_watches_has_no_thread(writer: RegistryWriter, registry: Registry) -> None:
    before = ringing_threads()
    writer.register_module(ModuleInfo("a.B"))
    assert ringing_threads() == before
    watcher = Watcher(registry, "acme.End")
    durations = itertools.count(2)

    def is_heard() -> bool:
        register(writer, "acme.Other", next(durations))
        return ringing_threads() > before

    until(is_heard)  # the watcher sleeps at most of these commits
    register(writer, "acme.End")
    watcher.join(PATIENCE)
    assert watcher.heard[-1].revision == registry.revision


@pytest.mark.skipif(not futex.is_available(), reason="this system has no futex")
def test_one_thread_wakes_all_watchers_of_a_process(writer: RegistryWriter, registry: Registry) -> None:
    before = watching_threads()
    with Registry(registry.path) as other:
        watchers = [Watcher(each, "acme.End") for each in (registry, registry, other, other)]
        until(lambda: watching_threads() == before + 1)

        async def watch_many() -> list[int]:
            async def one() -> int:
                async for change in registry.watch_async(timeout=PATIENCE):
                    if any(module.name == "acme.End" for module in change.modules):
                        return change.revision
                raise AssertionError("it ended early")

            tasks = [asyncio.ensure_future(one()) for _ in range(20)]
            await asyncio.sleep(0.1)
            assert watching_threads() == before + 1
            await asyncio.get_running_loop().run_in_executor(None, register, writer, "acme.End")
            return await asyncio.gather(*tasks)

        revisions = asyncio.run(watch_many())
        for watcher in watchers:
            watcher.join(PATIENCE)
        assert set(revisions) == {watcher.heard[-1].revision for watcher in watchers} == {registry.revision}
    until(lambda: watching_threads() == before)


@pytest.mark.parametrize("cannot", ["no futex", "an old writer"])
def test_without_a_bell_it_looks_every_now_and_then(
    writer: RegistryWriter, registry: Registry, monkeypatch: pytest.MonkeyPatch, cannot: str
) -> None:
    monkeypatch.setattr(watch, "can_sleep", lambda file: False)
    if cannot == "an old writer":
        monkeypatch.undo()
        monkeypatch.setattr(RevisionFile, "raise_bell", lambda self: False)
        RevisionFile(registry.path, writable=True).bell.store(0)
        assert not waiting.can_sleep(RevisionFile(registry.path))
    threads = watching_threads()
    watcher = Watcher(registry, "acme.End", poll=0.005)
    register(writer, "acme.End")
    watcher.join(PATIENCE)
    assert watcher.heard[-1].revision == registry.revision
    assert watching_threads() == threads


def is_asleep(registry: Registry) -> bool:
    """Whether somebody watches it, and is about to sleep at least."""
    return bool(waiting.waiter_of(registry._file)._sleepers)


@pytest.fixture
def _no_look_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the thread that waits for all watchers looks."""
    monkeypatch.setattr(watch, "LONGEST_REST", 3600.0)


def watch_until(registry: Registry, is_over: Callable[[Change], bool], ended: list[object]) -> threading.Thread:
    """Watches in a thread, without a timeout, and says what it ended with: the last change or the error."""

    def run() -> None:
        try:
            ended.append(next(change for change in registry.watch() if is_over(change)))
        except StoreClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


@pytest.mark.skipif(not futex.is_available(), reason="this system has no futex")
@pytest.mark.usefixtures("_no_look_of_their_own")
def test_a_bell_that_is_not_heard_costs_a_second(
    writer: RegistryWriter, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the writer is killed between the word and the bell."""
    monkeypatch.setattr(RevisionFile, "raise_bell", lambda self: False)
    ended: list[object] = []
    watcher = watch_until(registry, lambda change: True, ended)
    until(lambda: is_asleep(registry))
    register(writer, "acme.End")
    watcher.join(PATIENCE)
    assert [change.revision for change in ended] == [registry.revision]  # type: ignore[attr-defined]


@pytest.mark.skipif(not futex.is_available(), reason="this system has no futex")
@pytest.mark.usefixtures("_no_look_of_their_own")
def test_a_sleeping_watcher_notices_that_its_registry_was_closed(writer: RegistryWriter, registry: Registry) -> None:
    ended: list[object] = []
    watcher = watch_until(registry, lambda change: True, ended)
    until(lambda: is_asleep(registry))
    registry.close()
    watcher.join(PATIENCE)
    assert [type(error) for error in ended] == [StoreClosedError]


@pytest.mark.skipif(not futex.is_available(), reason="this system has no futex")
@pytest.mark.usefixtures("_no_look_of_their_own")
def test_a_sleeping_watcher_notices_a_folder_that_was_replaced_by_hand(tmp_path: Path) -> None:
    for name in ("here", "other"):
        with RegistryWriter(tmp_path / name) as writer:
            register(writer, f"acme.{name}")
    ended: list[object] = []
    with Registry(tmp_path / "here") as registry:
        watcher = watch_until(registry, lambda change: change.everything, ended)
        until(lambda: is_asleep(registry))
        (tmp_path / "here").rename(tmp_path / "gone")
        (tmp_path / "other").rename(tmp_path / "here")
        watcher.join(PATIENCE)
        assert registry.get("acme.other") is not None
    assert len(ended) == 1


@pytest.mark.skipif(not futex.is_available(), reason="this system has no futex")
def test_a_watcher_that_cannot_begin_to_sleep_is_forgotten(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_thread(self: object) -> None:
        raise RuntimeError("can't start new thread")

    waiter = waiting.waiter_of(registry._file)
    monkeypatch.setattr(waiting.Waiter, "_start", no_thread)
    with pytest.raises(RuntimeError):
        next(registry.watch(timeout=PATIENCE))
    assert waiter._sleepers == {}


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_signal_handler_may_fork_wherever_a_watcher_is(registry: Registry) -> None:
    script = """
import os, sys
from dspy_registry import Registry
registry = Registry(sys.argv[1])
def fork(frame, event, argument):
    if "sleep" in (frame.f_code.co_name, frame.f_back.f_code.co_name) and "wait" not in frame.f_code.co_filename:
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        return fork
sys.settrace(fork)
assert list(registry.watch(timeout=1)) == []
sys.settrace(None)
"""
    subprocess.run([sys.executable, "-c", script, str(registry.path)], timeout=PATIENCE, check=True)


def test_an_idle_watcher_ends_at_its_timeout(registry: Registry) -> None:
    assert list(registry.watch(timeout=0.05)) == []
    assert list(registry.watch(timeout=0.05, names="nothing.*")) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_fork_while_threads_watch(registry_folder: Path) -> None:
    """In a process of its own, where every warning is an error: parent and child go on watching."""
    script = """
import os, sys
from dspy_registry import ModuleInfo, Registry, RegistryWriter
folder = sys.argv[1]
writer, registry = RegistryWriter(folder), Registry(folder)
def heard(changes, name):
    return any(module.name == name for change in changes for module in change.modules)
def first(name):
    for change in registry.watch(0, timeout=60):
        if heard([change], name):
            return True
writer.register_module(ModuleInfo("acme.Before"))
# A watcher without a thread of its own keeps the waiting thread busy: its last sleep was just now.
assert list(registry.watch(timeout=0.01)) == []
child = os.fork()
if child == 0:
    os._exit(0 if first("acme.After") else 1)
writer.register_module(ModuleInfo("acme.After"))
assert first("acme.After")
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
writer.close(); registry.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(registry_folder)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={**os.environ},
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_fork_beside_watching_threads_loses_no_change(writer: RegistryWriter, registry: Registry) -> None:
    import warnings

    watchers = [Watcher(registry, "acme.End") for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the watchers' own threads
        for number in range(5):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
            register(writer, "acme.Qa", number)
    register(writer, "acme.End")
    for watcher in watchers:
        watcher.join(PATIENCE)
        assert [change.revision for change in watcher.heard] == list(range(2, 8))
