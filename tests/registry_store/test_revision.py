"""The revision word: what it says, and what is announced beside it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Change, ModuleInfo, Registry, RegistryWriter, StoreError
from dspy_registry.registry_store.changes import LARGEST_LISTED_CHANGE
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.layout import REVISION_FILE
from dspy_registry.registry_store.revision import (
    FILE_BYTES,
    RETIRED,
    RevisionFile,
    committed,
    private_word,
    private_words,
    under_way,
)
from dspy_registry.registry_store.sharing import attach, detach
from tests.support import cached_reader
from tests.support.cached_reader import is_cached, update

writer = cached_reader.writer
registry = cached_reader.registry


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


def test_views_are_equal_while_the_numbers_are(writer: RegistryWriter, registry_folder: Path) -> None:
    file = RevisionFile(registry_folder, writable=True)
    numbers = file.word[()], file.usage_word[()]
    word, words = private_word(numbers[0]), private_words(*numbers)
    assert file.word == word
    assert file.words == words
    assert tuple(file.words) == tuple(words) == numbers
    file.usage_word[()] += 1
    assert file.word == word
    assert file.words != words
    file.usage_word[()] -= 1
    assert file.words == words
    file.word[()] += 1
    assert file.word != word
    assert file.words != words
    word[()] += 1
    assert file.word == word


def test_one_view_shows_word_usage_word_and_health_count(writer: RegistryWriter, registry_folder: Path) -> None:
    file = RevisionFile(registry_folder, writable=True)
    assert tuple(file.every_word) == (file.word[()], 0.0, file.usage_word[()], file.health_count[()])
    for each in (file.word, file.usage_word, file.health_count):
        seen = private_words(*file.every_word)
        assert file.every_word == seen
        each[()] += 2
        assert file.every_word != seen
        each[()] -= 2


def test_a_retired_word_equals_nothing(writer: RegistryWriter, registry_folder: Path) -> None:
    file = RevisionFile(registry_folder, writable=True)
    usage = file.usage_word[()]
    file.word[()] = RETIRED
    assert file.word != private_word(RETIRED)
    assert file.word != file.word
    assert file.words != private_words(RETIRED, usage)
    assert file.words != file.words


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


def test_i2_what_is_announced_is_what_the_log_holds(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        for duration in (1, 2):
            revision = writer.register_module(ModuleInfo("acme.One", estimated_duration=duration))
            with registry.snapshot() as snapshot:
                (change,) = snapshot.changes_since(revision - 1)
            assert RevisionFile(registry_folder).announcement(revision) == change


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
    from dspy_registry.writer import failpoints

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
        with pytest.raises(StoreError, match=REVISION_FILE):
            RevisionFile(copy)


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


def test_a_reader_that_attaches_decodes_no_announcement(
    writer: RegistryWriter, registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cache is empty, and in a fresh process the decoder would take longer to make than all else of the attach."""
    codec = SealedAlone(Change, "an announcement")
    monkeypatch.setattr("dspy_registry.registry_store.revision.announcement_codec", codec)
    update(writer, "dspy.ReAct", 1)
    with Registry(registry_folder) as reader:
        assert reader.get_module("dspy.ReAct").estimated_duration == 1
        assert codec._decode is None
        update(writer, "dspy.ReAct", 2)
        assert reader.get_module("dspy.ReAct").estimated_duration == 2
        assert codec._decode is not None


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
    """A word that moves on between most looks, as one does that is stored by another processor.

    It stays for two looks at times, because a read begins only between two equal words.
    """

    def __init__(self, word: float) -> None:
        self.word = word
        self.looks = 0

    def __getitem__(self, _: tuple[()]) -> float:
        self.looks += 1
        self.word += self.looks % 3 != 0
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


def test_an_environment_that_nobody_uses_keeps_no_descriptor(registry_folder: Path) -> None:
    """Although somebody keeps the object: since Python 3.13 the traceback of an error may."""
    RegistryWriter(registry_folder).close()
    before = set(Path("/proc/self/fd").iterdir())
    environment = attach(registry_folder)
    assert set(Path("/proc/self/fd").iterdir()) > before
    detach(environment)
    left = [path.readlink() for path in set(Path("/proc/self/fd").iterdir()) - before if path.exists()]
    assert [path for path in left if path.is_relative_to(registry_folder)] == []
    del environment
