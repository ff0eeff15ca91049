"""The revision word: what it says, what is announced beside it, and registries that are restored or replaced."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import child, requests, say

from readers import Registry
from registry_store import ModuleInfo, RegistryNotFoundError, StoreError
from registry_store.changes import LARGEST_LISTED_CHANGE, Change
from registry_store.layout import DATA_FILE, LOCK_FILE, REVISION_FILE
from registry_store.revision import FILE_BYTES, RevisionFile, committed, under_way
from writer import RegistryWriter


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter, registry_folder: Path) -> Iterator[Registry]:
    with Registry(registry_folder) as registry:
        for _ in range(3):  # a record is kept from its second read on
            for name in registry:
                registry.get_module(name)
            registry.get_module("predict")
            registry.find_by_capability("reasoning")
            registry.find(pool_type="general")
        yield registry


def is_cached(registry: Registry, name: str) -> bool:
    """Whether two reads give the very same object."""
    return registry.get_module(name) is registry.get_module(name)


def update(writer: RegistryWriter, name: str, duration: int) -> int:
    return writer.register_module(ModuleInfo(name, estimated_duration=duration))


def update_often(writer: RegistryWriter) -> None:
    for number in range(100):
        update(writer, "a.Often", number)


# The word


def test_i2_the_word_follows_the_protocol(writer: RegistryWriter, registry_folder: Path) -> None:
    file = RevisionFile(registry_folder)
    assert file.word[()] == committed(writer.revision) == 2.0 * writer.revision
    words = []

    def staged(draft: Any) -> None:
        words.append(file.word[()])
        draft.register(ModuleInfo("a.B"))

    for _ in range(3):
        revision = writer.store.committer.commit(staged)
        words.append(file.word[()])
    assert words[-1] == committed(revision)
    assert words == sorted(words)


def test_i2_a_refused_or_empty_commit_leaves_the_word_alone(writer: RegistryWriter, registry_folder: Path) -> None:
    file, word = RevisionFile(registry_folder), committed(writer.revision)
    writer.store.committer.commit(lambda draft: None)
    with pytest.raises(ZeroDivisionError):
        writer.store.committer.commit(lambda draft: 1 / 0)  # type: ignore[arg-type, return-value]
    assert file.word[()] == word


def test_i2_a_commit_that_was_announced_and_given_up_uses_up_its_revision(registry_folder: Path) -> None:
    """Its odd word was seen with its announcement; were it used again, a reader could drop the wrong entries."""
    with RegistryWriter(registry_folder) as writer:
        revision = writer.revision
    for _ in range(3):  # killed again and again at the same point
        file = RevisionFile(registry_folder, writable=True)
        file.announce(Change(revision + 1, 0, keys=("dspy.ReAct",)))
        assert file.word[()] == under_way(revision + 1)
        with Registry(registry_folder) as registry:
            assert registry.revision == revision
            with RegistryWriter(registry_folder) as writer:
                revision += 1
                assert writer.revision == registry.revision == revision
                assert RevisionFile(registry_folder).word[()] == committed(revision)
                with registry.snapshot() as snapshot:
                    (change,) = snapshot.changes_since(revision - 1)
                assert (change.modules, change.keys, change.terms, change.everything) == ((), (), (), False)


def test_i2_a_commit_that_landed_unannounced_to_its_end_is_concluded(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        revision = update(writer, "dspy.ReAct", 1)
    file = RevisionFile(registry_folder, writable=True)
    file.word[()] = under_way(revision)
    with Registry(registry_folder) as registry, RegistryWriter(registry_folder) as writer:
        assert registry.revision == writer.revision == revision
        assert RevisionFile(registry_folder).word[()] == committed(revision)


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("where", ["before_odd_word", "before_commit", "before_even_word", "before_acknowledgement"])
def test_i2_an_exception_in_the_midst_of_a_commit_is_settled_by_the_next(
    writer: RegistryWriter,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    interruption: type[BaseException],
) -> None:
    """Such as a KeyboardInterrupt: it may arrive between any two instructions."""
    from writer import failpoints

    def interrupt(name: str) -> None:
        if name == where:
            raise interruption

    revision = writer.revision
    monkeypatch.setattr(failpoints, "reach", interrupt)
    with pytest.raises(interruption):
        update(writer, "dspy.ReAct", 1)
    monkeypatch.undo()
    landed = where in ("before_even_word", "before_acknowledgement")
    assert registry.get_module("dspy.ReAct").estimated_duration == (1 if landed else 5000)
    assert update(writer, "dspy.ReAct", 2) == registry.revision == revision + (1 if where == "before_odd_word" else 2)
    assert registry.get_module("dspy.ReAct").estimated_duration == 2


def test_the_revision_file_is_whole_or_refused(writer: RegistryWriter, registry_folder: Path) -> None:
    path = registry_folder / REVISION_FILE
    assert path.stat().st_size == FILE_BYTES
    whole = path.read_bytes()
    copy = registry_folder.with_name("copy")
    copy.mkdir()
    for content in (b"", whole[:-1], whole + b"\0", whole[:128] + b"another magic..." + whole[144:]):
        (copy / REVISION_FILE).write_bytes(content)
        with pytest.raises(StoreError, match="is not a revision file of this release"):
            RevisionFile(copy)


# The announcement


def test_i1_while_a_commit_is_under_way_only_what_it_touches_is_read_anew(
    writer: RegistryWriter, registry: Registry, registry_folder: Path
) -> None:
    file, revision = RevisionFile(registry_folder, writable=True), writer.revision + 1
    keys, terms = ("dspy.Predict", "Predict", "predict"), ("capability:reasoning", "pool:general")
    file.announce(Change(revision, 0, keys=keys, terms=terms))
    for name in ("dspy.Predict", "predict"):
        assert not is_cached(registry, name)
    for name in ("dspy.ReAct", "dspy.MIPROv2"):
        assert is_cached(registry, name)
    assert registry.find_by_capability("reasoning") is not registry.find_by_capability("reasoning")
    assert registry.find(pool_type="general") is not registry.find(pool_type="general")
    assert registry.find_by_capability("tool_use") is registry.find_by_capability("tool_use")
    assert registry.revision == revision - 1
    file.conclude(revision - 1)  # as it was: nothing landed


def test_i1_a_commit_too_large_to_announce_lets_nothing_be_served(
    writer: RegistryWriter, registry: Registry, registry_folder: Path
) -> None:
    file, revision = RevisionFile(registry_folder, writable=True), writer.revision + 1
    file.announce(Change(revision, 0, keys=tuple(f"a.{'x' * 240}{number}" for number in range(300))))
    announced = file.announcement(revision)
    assert announced is not None
    assert announced.everything
    assert not is_cached(registry, "dspy.ReAct")
    assert registry.find_by_capability("tool_use") is not registry.find_by_capability("tool_use")
    file.conclude(revision - 1)


def test_i1_a_commit_of_very_many_modules_drops_everything(writer: RegistryWriter, registry: Registry) -> None:
    first = registry["dspy.ReAct"]
    infos = [ModuleInfo(f"a.M{number}") for number in range(LARGEST_LISTED_CHANGE)]
    revision = writer.register_modules([*infos, ModuleInfo("dspy.ReAct", estimated_duration=1)])
    with registry.snapshot() as snapshot:
        assert snapshot.changes_since(revision - 1)[0].everything
    assert first.estimated_duration != registry.get_module("dspy.ReAct").estimated_duration == 1


def test_only_the_announcement_of_the_word_is_taken(writer: RegistryWriter, registry_folder: Path) -> None:
    file, revision = RevisionFile(registry_folder, writable=True), writer.revision + 1
    file.announce(Change(revision, 0, keys=("a",)))
    assert file.announcement(revision) == Change(revision, 0, keys=("a",))
    assert file.announcement(revision - 1) is None
    assert file.announcement(revision + 1) is None
    file._map[4096 + 20] ^= 0xFF  # half of it replaced under the reader's eyes
    assert file.announcement(revision) is None
    file.conclude(revision - 1)


class Restless:
    """A word that has moved on at every look, as one does that is stored by another processor."""

    def __init__(self, word: float) -> None:
        self.word = word

    def __getitem__(self, _: tuple[()]) -> float:
        self.word += 1
        return self.word


def test_i1_where_the_word_cannot_be_followed_nothing_kept_is_served(
    writer: RegistryWriter, registry: Registry
) -> None:
    assert is_cached(registry, "dspy.ReAct")
    update(writer, "dspy.ReAct", 1)
    registry._file.word = Restless(registry._file.word[()])  # type: ignore[assignment]
    for _ in range(3):
        assert registry.get_module("dspy.ReAct").estimated_duration == 1
        assert registry.find_by_capability("tool_use") == ()
    registry._file.word = registry._word
    for _ in range(3):
        assert registry.get_module("dspy.ReAct").estimated_duration == 1
        assert registry.find_by_capability("tool_use") == ()


@pytest.mark.parametrize("commits", [1, 2, 5, 255, 256, 257, 300])
def test_i1_a_reader_that_slept_through_commits_catches_up(
    writer: RegistryWriter, registry: Registry, commits: int
) -> None:
    for number in range(commits):
        update(writer, ("dspy.ReAct", "a.Other", "a.Third")[number % 3], number)
    with registry.snapshot() as snapshot:
        expected = dict(snapshot)
    for _ in range(3):
        assert {name: registry.get_module(name) for name in expected} == expected
        assert registry.find(pool_type="general") == tuple(n for n, i in expected.items() if i.pool_type == "general")


def test_i1_every_string_under_which_a_module_was_read_is_fresh(writer: RegistryWriter, registry: Registry) -> None:
    writer.set_alias("thinker", "dspy.ChainOfThought")
    asked = ("dspy.ChainOfThought", "ChainOfThought", "chain_of_thought", "thinker")
    for duration in range(1, 4):
        for name in asked:
            registry.get_module(name)
            registry.get_module(name)
        update(writer, "dspy.ChainOfThought", duration)
        registry.get_module("dspy.ReAct")  # catches up on behalf of something else
        assert [registry.get_module(name).estimated_duration for name in asked] == [duration] * 4


def test_i1_a_newcomer_that_takes_over_a_short_name_is_seen(writer: RegistryWriter, registry: Registry) -> None:
    update(writer, "acme.Refine", 1)
    for _ in range(3):
        assert registry.get_module("refine").name == "acme.Refine"
    update(writer, "dspy.Refine", 2)
    registry.get_module("dspy.ReAct")
    assert registry.get_module("refine").name == registry.get_module("Refine").name == "dspy.Refine"
    writer.set_alias("refine", "dspy.ReAct")
    registry.get_module("dspy.ReAct")
    assert registry.get_module("refine").name == "dspy.ReAct"
    writer.unregister_module("dspy.Refine")
    writer.remove_alias("refine")
    registry.get_module("dspy.ReAct")
    assert registry.get_module("refine").name == "acme.Refine"


# Registries that are restored or replaced


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
        with pytest.raises(StoreError, match=r"lock\.mdb is of another data\.mdb.*delete lock\.mdb"):
            RegistryWriter(registry_folder)
    (registry_folder / LOCK_FILE).unlink()
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert registry.get_module("dspy.ReAct").estimated_duration == 1
        update(writer, "dspy.ReAct", 2)
        assert registry.get_module("dspy.ReAct").estimated_duration == 2


def test_i13_a_writer_whose_data_file_was_replaced_stops(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        put_in_place(other_registry(tmp_path / "other", 1), registry_folder)
        with pytest.raises(StoreError, match=r"data\.mdb or lock\.mdb in .* was deleted or replaced"):
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
        with pytest.raises(StoreError, match="Close its writer and its snapshots, then open it again"):
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
            with pytest.raises(StoreError, match="data and revision file are not of one registry"):
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
        with pytest.raises(StoreError, match=r"lock\.mdb in .* was deleted or replaced"):
            update_often(writer)
    with RegistryWriter(registry_folder) as writer:
        update(writer, "a.B", 1000)


@pytest.mark.parametrize("word", [float("inf"), float("-inf"), 1e300, -4.0, 0.5])
def test_a_word_that_no_writer_stores_costs_speed_and_nothing_else(registry_folder: Path, word: float) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("a.B", estimated_duration=1))
        for _ in range(3):
            assert registry.get_module("a.B").estimated_duration == 1
        with (registry_folder / REVISION_FILE).open("r+b") as file:
            file.write(struct.pack("=d", word))
        for _ in range(3):
            assert registry.get_module("a.B").estimated_duration == 1
            assert registry.find_by_capability("reasoning")
            assert registry.revision == writer.revision
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("a.B", estimated_duration=2))
        assert registry.get_module("a.B").estimated_duration == 2
