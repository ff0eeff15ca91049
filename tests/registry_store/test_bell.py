"""Those who sleep on the bell say so where the writer reads it, or the writer asks the system after each commit."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter
from dspy_registry.readers.waiting import can_sleep
from dspy_registry.registry_store import futex
from dspy_registry.registry_store.layout import LOCK_FILE, REVISION_FILE
from dspy_registry.registry_store.revision import RevisionFile
from tests.support.forks import await_all, fork

pytestmark = pytest.mark.skipif(not futex.is_available(), reason="those who wait poll")
STRANGER = 54321


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach, for a registry that is not there yet."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    yield parent / "registry"
    shutil.rmtree(parent)


@pytest.fixture
def _group_may_read() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_who_sleeps_announces_it_for_longer_than_it_sleeps(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        file = RevisionFile(registry_folder)
        assert not file.bell.is_awaited()
        assert not file.bell.is_always_rung
        assert can_sleep(file)
        file.sleep(file.bell.value, 0.001)
        end = time.monotonic() + futex.LONGEST_WAIT
        assert file.bell._until[()] > end
        other = RevisionFile(registry_folder, writable=True)
        other.sleep(other.bell.value + 1, 1.0)  # it shortens nobody's time
        assert file.bell._until[()] > end


def test_a_writer_asks_the_system_only_where_somebody_may_sleep(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        file = RevisionFile(registry_folder, writable=True)
        asked: list[None] = []
        file.bell._set_aside = lambda: asked.append(None) or 0  # type: ignore[func-returns-value]
        before = file.bell.value
        assert not file.raise_bell()
        assert asked == []
        file.bell.announce()
        assert not file.raise_bell()
        assert asked == [None]
        assert file.bell.value == before + 2


@pytest.mark.usefixtures("_group_may_read")
def test_where_others_may_read_nobody_has_to_announce_it(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        file = RevisionFile(registry_folder)
        assert file.bell.is_always_rung
        file.sleep(file.bell.value, 0.001)
        assert file.bell.is_always_rung
        assert can_sleep(file)
        seen, revision = file.bell.value, writer.revision
        sleeper = threading.Thread(target=file.bell.wait, args=(seen, 1.0))
        sleeper.start()
        assert writer.register_module(ModuleInfo("a.B")) == revision + 1
        sleeper.join()
        assert file.bell.value != seen


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
@pytest.mark.parametrize("group", ["its own", "the registry's"])
def test_a_watcher_of_another_user_is_woken_or_looks_itself(reachable: Path, group: str) -> None:
    """It may read the registry, and cannot say that it sleeps. Only if the writer knew of it does the writer ask."""
    before = os.umask(0o002 if group == "the registry's" else 0o022)
    with RegistryWriter(reachable) as writer:
        os.umask(before)
        reachable.chmod(0o755)
        for path in reachable.iterdir():  # access that is given while the writer runs
            path.chmod(0o666 if path.name == LOCK_FILE else 0o644)
        ready, began = os.pipe()

        def watch() -> None:
            os.setgroups([])
            os.setgid(STRANGER)
            os.setuid(STRANGER)
            with Registry(reachable) as registry:
                assert not os.access(reachable / REVISION_FILE, os.W_OK)
                assert can_sleep(registry._file) == (group == "the registry's")
                changes = registry.watch(timeout=10)
                os.write(began, b"x")
                assert [module.name for module in next(changes).modules] == ["a.B"]

        watcher = fork(watch)
        os.read(ready, 1)
        writer.register_module(ModuleInfo("a.B"))
        await_all(watcher)
        os.close(ready)
        os.close(began)


def test_a_reader_that_finds_another_file_there_does_not_write_to_that_one(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        old = RevisionFile(registry_folder)
    with RegistryWriter(registry_folder):
        assert not can_sleep(old)
        old.sleep(old.bell.value, 0.001)
        assert not RevisionFile(registry_folder).bell.is_awaited()
