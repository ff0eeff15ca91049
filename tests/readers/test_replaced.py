"""Registries that are restored or replaced, and files that somebody takes away: readers notice, the writer stops."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from dspy_registry import Registry, RegistryNotFoundError, RegistryWriter, StoreError
from dspy_registry.registry_store.layout import DATA_FILE, LOCK_FILE, REVISION_FILE
from dspy_registry.registry_store.revision import FILE_BYTES, RevisionFile
from tests.support import cached_reader
from tests.support.cached_reader import update, update_often
from tests.support.forks import await_all, fork
from tests.support.processes import child, requests, say

writer = cached_reader.writer
registry = cached_reader.registry


def other_registry(path: Path, revisions: int) -> Path:
    with RegistryWriter(path) as writer:
        for number in range(revisions):
            update(writer, "dspy.ReAct", 1000 + number)
        update(writer, "other.Only", 1)
    return path


def put_in_place(source: Path, folder: Path) -> None:
    """What a restore does while no writer runs: a data file comes in the place of the other."""
    shutil.copy(source / DATA_FILE, folder / "incoming")
    (folder / "incoming").replace(folder / DATA_FILE)


@pytest.mark.parametrize("revisions", [0, 3, 30], ids=["older", "same revision", "newer"])
def test_i13_live_readers_notice_a_restored_registry(registry_folder: Path, tmp_path: Path, revisions: int) -> None:
    with RegistryWriter(registry_folder) as writer:
        for number in range(3):
            update(writer, "dspy.ReAct", number)
        update(writer, "a.Gone", 1)
    with Registry(registry_folder) as cached, Registry(registry_folder) as unread:
        for _ in range(3):
            assert cached.get_module("dspy.ReAct").estimated_duration == 2
            assert cached.find(category="unknown")
        watching = cached.watch(since=cached.revision, timeout=0)
        put_in_place(other_registry(tmp_path / "other", revisions), registry_folder)
        with RegistryWriter(registry_folder) as writer:
            for registry in (unread, cached):
                assert registry.get_module("other.Only").estimated_duration == 1
                assert registry.get("a.Gone") is None
                assert "a.Gone" not in list(registry)
                assert registry.revision == writer.revision
            assert [change.everything for change in watching] == [True]
            update(writer, "other.Only", 2)
            assert cached.get_module("other.Only").estimated_duration == 2


def test_i13_the_first_read_of_a_name_is_of_the_restored_registry(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "dspy.ReAct", 7)
    with Registry(registry_folder) as registry:
        put_in_place(other_registry(tmp_path / "other", 2), registry_folder)
        with RegistryWriter(registry_folder):
            assert registry.get_module("dspy.ReAct").estimated_duration == 1001


def test_i13_a_compacted_file_at_the_same_revision_is_a_new_identity(registry_folder: Path, tmp_path: Path) -> None:
    """Readers have the former file mapped: the same registry, and yet they would never see another change."""
    with RegistryWriter(registry_folder) as writer:
        update(writer, "dspy.ReAct", 7)
        (tmp_path / "compact").mkdir()
        writer.store.environment.lmdb.copy(str(tmp_path / "compact"), compact=True)
    with Registry(registry_folder) as registry:
        for _ in range(3):
            assert registry.get_module("dspy.ReAct").estimated_duration == 7
        put_in_place(tmp_path / "compact", registry_folder)
        with RegistryWriter(registry_folder) as writer:
            update(writer, "dspy.ReAct", 8)
            assert registry.get_module("dspy.ReAct").estimated_duration == 8


def copy_over(source: Path, folder: Path, *names: str) -> None:
    """As `cp` does: other bytes in the same inodes, which live readers have mapped."""
    for name in names:
        with (folder / name).open("r+b") as file:
            file.write((source / name).read_bytes())
            file.truncate()


@pytest.mark.parametrize("commits", [4, 5, 6], ids=["before", "same revision", "beyond"])
@pytest.mark.parametrize("looks_between", [False, True])
def test_i13_live_readers_notice_files_that_were_copied_over(
    registry_folder: Path, tmp_path: Path, commits: int, looks_between: bool
) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "dspy.ReAct", 1)
    shutil.copytree(registry_folder, tmp_path / "backup")
    with RegistryWriter(registry_folder) as writer:
        for number in range(5):
            update(writer, "dspy.ReAct", 200 + number)
        update(writer, "a.Gone", 1)
    with child(__name__, "reads_on", registry_folder) as reader:
        assert reader.ask() == [204, 1]
        copy_over(tmp_path / "backup", registry_folder, DATA_FILE, LOCK_FILE, REVISION_FILE)
        if looks_between:
            assert reader.ask() == [1, None]
        with RegistryWriter(registry_folder) as writer:
            for number in range(commits):
                update(writer, "dspy.ReAct", 300 + number)
            assert reader.ask() == [300 + commits - 1, None]
            update(writer, "dspy.ReAct", 7)
            assert reader.ask() == [7, None]


def reads_on(folder: str) -> None:
    with Registry(folder) as registry:
        for _ in requests():
            for _ in range(3):
                gone = registry.get("a.Gone")
                seen = [registry.get_module("dspy.ReAct").estimated_duration, gone and gone.estimated_duration]
            say(seen)


def test_i13_a_data_file_beside_the_lock_file_of_live_readers_is_refused(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "dspy.ReAct", 1)
    shutil.copytree(registry_folder, tmp_path / "backup")
    with RegistryWriter(registry_folder) as writer:
        for number in range(5):
            update(writer, "dspy.ReAct", 200 + number)
    with child(__name__, "reads_on", registry_folder) as reader:
        assert reader.ask() == [204, None]
        copy_over(tmp_path / "backup", registry_folder, DATA_FILE)
        with pytest.raises(StoreError, match=LOCK_FILE):
            RegistryWriter(registry_folder)
    (registry_folder / LOCK_FILE).unlink()
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert registry.get_module("dspy.ReAct").estimated_duration == 1
        update(writer, "dspy.ReAct", 2)
        assert registry.get_module("dspy.ReAct").estimated_duration == 2


def test_i13_a_writer_whose_data_file_was_replaced_stops(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        put_in_place(other_registry(tmp_path / "other", 1), registry_folder)
        with pytest.raises(StoreError, match=DATA_FILE):
            update_often(writer)
    with RegistryWriter(registry_folder) as writer:
        assert update(writer, "other.Only", 5) == writer.revision


def test_i13_a_snapshot_of_the_former_registry_stands_in_the_way_and_says_so(
    registry_folder: Path, tmp_path: Path
) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "dspy.ReAct", 7)
    with Registry(registry_folder) as registry:
        snapshot = registry.snapshot()
        put_in_place(other_registry(tmp_path / "other", 1), registry_folder)
        with pytest.raises(StoreError, match=str(registry_folder)):
            RegistryWriter(registry_folder)
        assert snapshot["dspy.ReAct"].estimated_duration == 7
        snapshot.close()
        with RegistryWriter(registry_folder):
            assert registry["other.Only"].estimated_duration == 1


def test_i13_a_folder_replaced_by_hand_is_noticed_by_a_snapshot_at_once(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.Former", 7)
    other = other_registry(tmp_path / "other", 2)
    with Registry(registry_folder) as registry:
        for _ in range(3):
            assert registry.get_module("a.Former").estimated_duration == 7
        registry_folder.rename(tmp_path / "former")
        other.rename(registry_folder)
        with registry.snapshot() as snapshot:
            assert "a.Former" not in snapshot
            assert snapshot["other.Only"].estimated_duration == 1
        assert registry.get("a.Former") is None


def test_i13_a_folder_replaced_by_hand_is_noticed_by_reads_that_miss_the_cache(
    registry_folder: Path, tmp_path: Path
) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.Former", 7)
    other = other_registry(tmp_path / "other", 2)
    with Registry(registry_folder, cache_size=0) as registry:
        assert registry.get_module("a.Former").estimated_duration == 7
        registry_folder.rename(tmp_path / "former")
        other.rename(registry_folder)
        while "a.Former" in registry:  # it looks at the folder once a second
            pass
        assert registry.get_module("other.Only").estimated_duration == 1


def test_i13_a_folder_that_was_away_for_a_while_leaves_no_stale_entry_behind(
    writer: RegistryWriter, registry: Registry, registry_folder: Path, tmp_path: Path
) -> None:
    """Opening anew fails meanwhile; what is kept then must still follow the registry it is of."""
    registry_folder.rename(tmp_path / "away")
    for _ in range(2):
        with pytest.raises(RegistryNotFoundError):
            registry.snapshot()
        registry._look_again_at = float("inf")  # as within the second in which the folder is not looked at again
        for _ in range(3):
            assert registry.get_module("dspy.ReAct").estimated_duration == 5000
    (tmp_path / "away").rename(registry_folder)
    for duration in range(3):
        update(writer, "dspy.ReAct", duration)
        assert registry.get_module("dspy.ReAct").estimated_duration == duration
        assert registry.get_module("dspy.ReAct").estimated_duration == duration
    with registry.snapshot() as snapshot:
        assert snapshot["dspy.ReAct"].estimated_duration == 2


def test_i13_a_lost_revision_file_makes_a_new_identity(registry_folder: Path) -> None:
    for damage in (
        lambda path: path.unlink(),
        lambda path: os.truncate(path, 100),
        lambda path: path.write_bytes(bytes(FILE_BYTES)),
    ):
        with RegistryWriter(registry_folder) as writer:
            revision = update(writer, "a.B", writer.revision)
        before = RevisionFile(registry_folder).registry_id
        damage(registry_folder / REVISION_FILE)
        with pytest.raises(StoreError):
            Registry(registry_folder)
        with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
            assert registry.revision == writer.revision == revision
            assert RevisionFile(registry_folder).registry_id != before


def test_i13_a_retired_file_that_nobody_replaces_is_an_error(registry_folder: Path) -> None:
    """As a writer leaves it that dies while it makes a new identity."""
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        revision = update(writer, "a.B", 1)
        RevisionFile(registry_folder, writable=True).retire()
        for opened in (registry.snapshot, lambda: Registry(registry_folder)):
            with pytest.raises(StoreError, match=str(registry_folder)):
                opened()
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert registry.revision == writer.revision == revision


def test_i13_a_copied_folder_is_a_registry_of_its_own(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.B", 1)
    copy = tmp_path / "copy"
    shutil.copytree(registry_folder, copy)
    with RegistryWriter(registry_folder) as writer, RegistryWriter(copy) as other:
        update(other, "a.B", 2)
        assert RevisionFile(copy).registry_id != RevisionFile(registry_folder).registry_id
        with Registry(registry_folder) as registry, Registry(copy) as copied:
            assert (registry["a.B"].estimated_duration, copied["a.B"].estimated_duration) == (1, 2)
        assert writer.revision == other.revision - 1


def test_i14_a_lock_file_that_was_deleted_stops_the_writer(registry_folder: Path) -> None:
    """Readers that open the folder now are not seen: what they read would be overwritten."""
    with RegistryWriter(registry_folder) as writer:
        (registry_folder / LOCK_FILE).unlink()
        with pytest.raises(StoreError, match=LOCK_FILE):
            update_often(writer)
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.B", 1000)


@pytest.mark.parametrize("cache_size", [0, 8192])
def test_i13_readers_heal_after_their_lock_file_was_replaced(registry_folder: Path, cache_size: int) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.B", 1)
    with Registry(registry_folder, cache_size=cache_size) as registry, Registry(registry_folder) as other:
        assert registry.get_module("a.B").estimated_duration == 1
        (registry_folder / LOCK_FILE).unlink()
        with child(__name__, "updates_on", registry_folder) as writing:
            for duration in (2, 3):
                assert writing.ask(duration) == registry.revision
                for each in (registry, other):
                    assert each.get_module("a.B").estimated_duration == duration
                    with each.snapshot() as snapshot:
                        assert snapshot["a.B"].estimated_duration == duration


def test_i13_a_snapshot_stands_in_the_way_of_healing_and_says_so(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.B", 1)
    with Registry(registry_folder, cache_size=0) as registry:
        snapshot = registry.snapshot()
        (registry_folder / LOCK_FILE).unlink()
        with child(__name__, "updates_on", registry_folder) as writing:
            writing.ask(2)
            with pytest.raises(StoreError, match=str(registry_folder)):
                registry.get_module("a.B")
            assert snapshot["a.B"].estimated_duration == 1
            snapshot.close()
            assert registry.get_module("a.B").estimated_duration == 2


def test_i15_a_lock_file_replaced_across_a_fork_costs_neither_side(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.B", 1)
    with Registry(registry_folder, cache_size=0) as registry:
        assert registry.get_module("a.B").estimated_duration == 1
        shutil.copy(registry_folder / LOCK_FILE, registry_folder / "incoming")
        (registry_folder / "incoming").replace(registry_folder / LOCK_FILE)
        await_all(fork(lambda: registry["a.B"]))
        assert registry.get_module("a.B").estimated_duration == 1


def updates_on(folder: str) -> None:
    with RegistryWriter(folder) as writer:
        for duration in requests():
            say(update(writer, "a.B", duration))
