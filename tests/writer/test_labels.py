"""Versions and labels: changed in one commit, kept as long as a label names them, and read everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    InvalidArgumentError,
    LabelConflictError,
    LabelUpdate,
    ModuleInfo,
    Registry,
    RegistryWriter,
    Resolved,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)
from dspy_registry.registry_store import validation
from dspy_registry.registry_store.buckets import BUCKETS
from dspy_registry.registry_store.labels import MAX_LABELS_OF_MODULE, MAX_UPDATES
from dspy_registry.writer import labels as staging
from tests.support.label_model import WINDOW, ModelOfModule, table_of

NAME = "acme.Qa"


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter) -> Iterator[Registry]:
    with Registry(writer.store.folder) as registry:
        yield registry


def versions(writer: RegistryWriter, count: int, name: str = NAME, first: int = 1) -> None:
    """Registers a module `count` times; version n takes n milliseconds."""
    for number in range(first, first + count):
        writer.register_module(ModuleInfo(name, estimated_duration=number))


def duration(registry: Registry, asked: str) -> int:
    return registry.get_module(asked).estimated_duration


# Reading


def test_a_version_is_read_by_its_number_and_by_its_label(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 4)
    writer.set_label(NAME, "champion", 3)
    writer.set_alias("qa-alias", NAME)
    for asked in (f"{NAME}@3", f"{NAME}@champion", "Qa@3", "qa@champion", "qa-alias@champion"):
        for _ in range(3):  # cold, marked, cached
            assert duration(registry, asked) == 3
        assert registry.resolve(asked)[:2] == (NAME, 3)
        assert registry.describe(asked).provenance.version == 3
    assert duration(registry, f"{NAME}@latest") == duration(registry, NAME) == 4
    assert registry.resolve(NAME) == Resolved(NAME, 4)
    assert str(registry.resolve(f"{NAME}@champion")) == f"{NAME}@3"
    assert registry.has_native(f"{NAME}@3") is False
    assert registry.get_pool_type(f"{NAME}@3") == "general"
    with registry.snapshot() as snapshot:
        assert snapshot.get_module(f"{NAME}@champion").estimated_duration == 3
        assert snapshot.resolve("Qa@champion") == Resolved(NAME, 3, "champion")
        assert list(snapshot.labelled_modules()) == [NAME]


def test_what_is_not_there_is_an_error_that_lists_what_is(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 2)
    writer.set_label(NAME, "champion", 2)
    with pytest.raises(UnknownVersionError) as version:
        registry.get_module(f"{NAME}@7")
    assert version.value.kept == (2, 1)
    with pytest.raises(UnknownLabelError) as label:
        registry.resolve(f"{NAME}@live", key="user-17")
    assert label.value.labels == ("champion",)
    with pytest.raises(UnknownModuleError) as name:
        registry.get_module("acme.Qaa@champion")
    assert NAME in name.value.closest
    for strange in (f"{NAME}@", f"@{NAME}", "@", f"{NAME}@3@4", f"{NAME}@" + "9" * 400, "\udc80@3"):
        with pytest.raises((UnknownModuleError, UnknownLabelError)):
            registry.get_module(strange)
        assert strange not in registry
        assert registry.get(strange) is None
    for asked in (f"{NAME}@champion", f"{NAME}@7", f"{NAME}@2"):  # as a mapping it has full names only
        assert asked not in registry
        assert registry.get(asked) is None


def test_i32_the_same_key_has_the_same_version_in_every_reader(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 4)
    writer.set_label(NAME, "live", {3: 90, 4: 10})
    keys = [f"user-{number}" for number in range(2000)]
    with Registry(writer.store.folder) as other, other.snapshot() as snapshot:
        chosen = [registry.resolve(f"{NAME}@live", key=key).version for key in keys]
        assert chosen == [other.resolve("qa@live", key=key).version for key in keys]
        assert chosen == [snapshot.resolve("Qa@live", key=key).version for key in keys]
    table = table_of(registry.labels(NAME)["live"].runs)
    model = ModelOfModule(labels={"live": table})
    assert chosen == [model.chosen(NAME, "live", key) for key in keys]
    assert set(chosen) == {3, 4}
    assert registry.resolve(f"{NAME}@live").version == 3
    assert duration(registry, f"{NAME}@live") == 3

    writer.set_label(NAME, "live", {3: 80, 4: 20})
    moved = [registry.resolve(f"{NAME}@live", key=key).version for key in keys]
    assert all(after == 4 for before, after in zip(chosen, moved, strict=True) if before == 4)
    changed = sum(old != new for old, new in zip(table, table_of(registry.labels(NAME)["live"].runs), strict=True))
    assert changed == BUCKETS // 10


def test_a_change_of_a_label_is_seen_by_all_who_asked(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 4)
    writer.set_label(NAME, "champion", 3)
    asked = (f"{NAME}@champion", "qa@champion", "Qa@champion", f"{NAME}@latest")
    before = [[duration(registry, name) for name in asked] for _ in range(3)][-1]
    assert before == [3, 3, 3, 4]
    assert registry.resolve(asked[0]).version == 3
    writer.set_label(NAME, "champion", 2)
    assert [duration(registry, name) for name in asked] == [2, 2, 2, 4]
    assert registry.resolve(asked[0]).version == 2
    versions(writer, 1, first=5)
    assert [duration(registry, name) for name in asked] == [2, 2, 2, 5]
    writer.remove_label(NAME, "champion")
    for name in asked[:3]:
        with pytest.raises(UnknownLabelError):
            registry.get_module(name)


def test_a_name_with_an_at_of_an_earlier_release_wins(
    writer: RegistryWriter, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(writer, 2)
    with monkeypatch.context() as earlier:
        earlier.setattr(validation, "_has_wrong_parts", lambda name: False)
        writer.register_module(ModuleInfo(f"{NAME}@2", estimated_duration=77))
    assert duration(registry, f"{NAME}@2") == 77
    assert duration(registry, f"{NAME}@1") == 1


# Changing


def test_several_labels_change_in_one_commit_or_none(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 3)
    versions(writer, 2, "acme.Other")
    before = writer.revision
    writer.set_labels([LabelUpdate(NAME, "champion", 2), LabelUpdate("acme.Other", "champion", {1: 1, 2: 3})])
    assert writer.revision == before + 1
    assert registry.labels("acme.Other")["champion"].versions == {1: 2500, 2: 7500}
    for bad in (
        LabelUpdate("acme.None", "x", 1),
        LabelUpdate(NAME, "x", 9),
        LabelUpdate(NAME, "champion", 3, expected=3),
        LabelUpdate(NAME, "away", None),
        LabelUpdate(NAME, "latest", 1),
    ):
        with pytest.raises(
            (UnknownModuleError, UnknownVersionError, LabelConflictError, UnknownLabelError, ValueError)
        ):
            writer.set_labels([LabelUpdate(NAME, "champion", 3), bad])
    assert writer.revision == before + 1
    assert registry.resolve(f"{NAME}@champion").version == 2
    writer.set_labels([LabelUpdate(NAME, "champion", None), LabelUpdate(NAME, "challenger", 3)])
    assert list(registry.labels(NAME)) == ["challenger"]


def test_expected_holds_a_change_back(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 4)
    writer.set_label(NAME, "live", 3, expected=0)
    with pytest.raises(LabelConflictError) as conflict:
        writer.set_label(NAME, "live", 4, expected=0)
    assert (conflict.value.expected, conflict.value.current) == ("-", "3")
    writer.set_label(NAME, "live", {3: 90, 4: 10}, expected=3)
    with pytest.raises(LabelConflictError):
        writer.set_label(NAME, "live", 4, expected={3: 10, 4: 90})
    writer.set_label(NAME, "live", 4, expected={3: 9, 4: 1})
    with pytest.raises(LabelConflictError):
        writer.remove_label(NAME, "live", expected=3)
    writer.remove_label(NAME, "live", expected=4)
    assert registry.labels(NAME) == {}


def test_everything_wrong_is_told_at_once(writer: RegistryWriter) -> None:
    versions(writer, 2)
    bad: Any = [
        LabelUpdate(NAME, "3rd", 1),
        LabelUpdate(NAME, "latest", 1),
        LabelUpdate(NAME, "zero", {1: 0, 2: -1}),
        LabelUpdate(NAME, "many", dict.fromkeys(range(1, 30), 1.0)),
        LabelUpdate(NAME, "text", "1"),  # type: ignore[arg-type]
        LabelUpdate(NAME, "twice", 1),
        LabelUpdate(NAME, "twice", 2),
    ]
    with pytest.raises(InvalidArgumentError) as error:
        writer.set_labels(bad)
    for word in ("3rd", "latest", "zero", "many", "text", "twice"):
        assert f"@{word}" in error.value.message
    assert writer.revision == 3


def test_an_equal_label_makes_no_revision(writer: RegistryWriter) -> None:
    versions(writer, 2)
    writer.set_label(NAME, "live", {1: 1, 2: 1})
    before = writer.revision
    assert writer.set_label(NAME, "live", {1: 50, 2: 50}) == writer.revision == before


def test_a_module_has_a_bounded_number_of_labels(writer: RegistryWriter) -> None:
    versions(writer, 1)
    writer.set_labels([LabelUpdate(NAME, f"l{number}", 1) for number in range(MAX_LABELS_OF_MODULE)])
    with pytest.raises(InvalidArgumentError):
        writer.set_label(NAME, "more", 1)
    with pytest.raises(InvalidArgumentError):
        writer.set_labels([LabelUpdate(f"acme.N{number}", "x", 1) for number in range(MAX_UPDATES + 1)])
    with pytest.raises(InvalidArgumentError, match="LabelUpdates"):
        writer.set_labels([("acme.Qa", "x", 1)])  # type: ignore[list-item]


# What labels keep, and where they go


def test_i8_a_labelled_version_is_kept_until_no_label_names_it(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 2)
    writer.set_labels([LabelUpdate(NAME, "old", 1), LabelUpdate(NAME, "split", {1: 1, 2: 1})])
    versions(writer, 30, first=3)
    kept = [stored.provenance.version for stored in registry.history(NAME)]
    assert kept == [*range(32, 32 - WINDOW - 1, -1), 2, 1]
    assert duration(registry, f"{NAME}@1") == 1
    assert duration(registry, f"{NAME}@2") == 2
    writer.remove_label(NAME, "split")
    assert [stored.provenance.version for stored in registry.history(NAME)][-2:] == [16, 1]
    writer.set_label(NAME, "old", 32)
    assert [stored.provenance.version for stored in registry.history(NAME)] == [*range(32, 15, -1)]


def test_unregistering_drops_labels_and_says_so(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 2)
    writer.set_label(NAME, "old", 1)
    versions(writer, 30, first=3)
    with registry.snapshot() as before:
        revision = writer.unregister_module(NAME)
        with registry.snapshot() as after:
            (change,) = after.changes_since(before.revision)
    assert change.revision == revision
    assert [(told.name, told.label, told.old, told.new) for told in change.labels] == [
        (NAME, "old", ((1, BUCKETS),), ())
    ]
    assert [stored.provenance.version for stored in registry.history(NAME)] == [*range(32, 16, -1)]
    versions(writer, 1)
    assert registry.labels(NAME) == {}
    assert registry.resolve(NAME).version == 33


def test_a_rename_carries_labels_and_the_versions_that_they_name(writer: RegistryWriter, registry: Registry) -> None:
    versions(writer, 5)
    writer.set_labels([LabelUpdate(NAME, "champion", 5), LabelUpdate(NAME, "live", {2: 90, 5: 10})])
    writer.rename_module(NAME, "acme.Answers")
    assert duration(registry, "acme.Answers") == duration(registry, "acme.Answers@champion") == 5
    assert duration(registry, "acme.Answers@live") == 2
    assert registry.labels("acme.Answers")["live"].versions == {1: 9000, 2: 1000}
    with pytest.raises(UnknownModuleError):
        registry.labels(NAME)


def test_a_label_stays_through_an_override_and_its_release(writer: RegistryWriter, registry: Registry) -> None:
    from dspy_registry.registry_store.layers import Layer

    layer = Layer("manifest:a.toml", {"estimated_duration": 1})
    writer.store.committer.commit(lambda draft: draft.declare(NAME, layer))
    writer.set_label(NAME, "champion", 1)
    with registry.snapshot() as before:
        versions(writer, 1, first=2)
        writer.release(NAME)
        with registry.snapshot() as after:
            told = after.changes_since(before.revision)
    assert [change.overrides for change in told] == [(NAME,), (NAME,)]
    assert duration(registry, f"{NAME}@champion") == 1
    assert registry.resolve(NAME).version == 3


def test_labels_of_one_group_see_each_other(writer: RegistryWriter, registry: Registry) -> None:
    """As the daemon commits: several requests, each on a draft over the group's."""

    def stage(draft: Any) -> None:
        for number in range(1, 25):
            child = draft.child()
            child.register(ModuleInfo(NAME, estimated_duration=number))
            if number == 3:
                staging.set_labels(child, [LabelUpdate(NAME, "champion", 2)])
            if number == 4:
                staging.set_labels(child, [LabelUpdate(NAME, "gone", 1)])
            if number == 22:
                staging.set_labels(child, [LabelUpdate(NAME, "gone", None)])
            draft.absorb(child)

    writer.store.committer.commit(stage)
    assert [stored.provenance.version for stored in registry.history(NAME)] == [*range(24, 7, -1), 2]
