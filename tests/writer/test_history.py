"""The versions that are kept of a module: all that readers are told of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_registry import (
    AmbiguousNameError,
    CorruptRecordError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    Requirements,
    StoredModule,
    UnknownModuleError,
)
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.history import changed_values, kept_names
from dspy_registry.registry_store.sharing import attach, detach

KEPT = layout.HISTORY_VERSIONS + 1


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as writer:
        yield writer


@pytest.fixture
def registry(writer: RegistryWriter, registry_folder: Path) -> Iterator[Registry]:
    with Registry(registry_folder) as registry:
        yield registry


def module(name: str, duration: int) -> ModuleInfo:
    return ModuleInfo(name, estimated_duration=duration)


def seen(history: tuple[StoredModule, ...]) -> list[tuple[int, int]]:
    """(version, duration) of each."""
    return [(stored.provenance.version, stored.info.estimated_duration) for stored in history]


def damage(folder: Path, key: bytes, value: bytes | None = None) -> None:
    """Another value in `history`; None: the same with one bit flipped."""
    environment = attach(folder, writable=True)
    try:
        with environment.lmdb.begin(write=True, db=environment.dbs.history) as txn:
            found = txn.get(key)
            txn.put(key, value or found[:5] + bytes((found[5] ^ 1,)) + found[6:])
    finally:
        detach(environment)


def test_history_is_newest_first_with_the_version_in_force(writer: RegistryWriter, registry: Registry) -> None:
    revisions = [writer.register_module(module("acme.X", duration)) for duration in (5, 6, 7)]
    history = registry.history("acme.X")
    assert seen(history) == [(3, 7), (2, 6), (1, 5)]
    assert [stored.provenance.revision for stored in history] == revisions[::-1]
    assert history[0] == registry.describe("acme.X")
    with registry.snapshot() as snapshot:
        assert snapshot.history("acme.X") == history


def test_a_module_that_never_changed_has_one_version(registry: Registry) -> None:
    assert registry.history("dspy.Predict") == (registry.describe("dspy.Predict"),)


def test_i8_at_most_sixteen_replaced_versions_are_kept(writer: RegistryWriter, registry: Registry) -> None:
    for duration in range(1, 41):
        writer.register_module(module("acme.X", duration))
    assert seen(registry.history("acme.X")) == [(version, version) for version in range(40, 40 - KEPT, -1)]


def test_what_is_kept_of_an_unregistered_module_and_after_it_came_back(
    writer: RegistryWriter, registry: Registry
) -> None:
    for duration in (5, 6):
        writer.register_module(module("acme.X", duration))
    writer.unregister_module("acme.X")
    assert seen(registry.history("acme.X")) == [(2, 6), (1, 5)]
    writer.register_module(module("acme.X", 7))
    assert seen(registry.history("acme.X")) == [(3, 7), (2, 6), (1, 5)]


def test_names_resolve_as_for_get_module(writer: RegistryWriter, registry: Registry) -> None:
    writer.register_module(module("dspy.Predict", 5))
    writer.set_alias("p", "dspy.Predict")
    for name in ("dspy.Predict", "Predict", "predict", "p"):
        assert seen(registry.history(name))[0] == (2, 5)
    writer.register_modules([ModuleInfo("a.Same"), ModuleInfo("b.Same")])
    with pytest.raises(AmbiguousNameError):
        registry.history("Same")


def test_an_alias_that_bears_the_name_of_a_gone_module_means_what_it_is_declared_to(
    writer: RegistryWriter, registry: Registry
) -> None:
    writer.register_modules([module("acme.Old", 5), module("acme.New", 6)])
    writer.unregister_module("acme.Old")
    writer.set_alias("acme.Old", "acme.New")
    assert registry.history("acme.Old")[0].info == registry.get_module("acme.Old")


def test_names_that_begin_alike_are_kept_apart(writer: RegistryWriter, registry: Registry) -> None:
    names = ("acme.A", "acme.A.B", "acme.AB", "acme", "a")
    for duration in range(3):
        writer.register_modules([module(name, duration) for name in names])
    for name in names:
        assert {stored.info.name for stored in registry.history(name)} == {name}
        assert seen(registry.history(name)) == [(3, 2), (2, 1), (1, 0)]


@pytest.mark.parametrize(
    "name", ["acme.Missing", "", "\0", "acme.X\0", "acme.X\0\0\0\0\1", "x" * 300, "\ud800", "é" * 200]
)
def test_i17_a_name_of_which_nothing_is_kept_is_unknown(writer: RegistryWriter, registry: Registry, name: str) -> None:
    for duration in range(3):
        writer.register_module(module("acme.X", duration))
    with pytest.raises(UnknownModuleError):
        registry.history(name)
    with pytest.raises(UnknownModuleError) as caught:
        registry.history("dspy.Predic")
    assert caught.value.closest[0] == "dspy.Predict"


def test_i4_the_history_in_a_snapshot_is_of_its_revision(writer: RegistryWriter, registry: Registry) -> None:
    writer.register_module(module("acme.X", 5))
    with registry.snapshot() as snapshot:
        writer.register_module(module("acme.X", 6))
        writer.unregister_module("dspy.ReAct")
        assert seen(snapshot.history("acme.X")) == [(1, 5)]
        assert snapshot.history("dspy.ReAct")[0] == snapshot.describe("dspy.ReAct")
    assert seen(registry.history("acme.X")) == [(2, 6), (1, 5)]


def test_i10_a_damaged_version_is_named(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        for duration in (5, 6, 7):
            writer.register_module(module("acme.X", duration))
        writer.register_module(module("dspy.Predict", 5))
    damage(seeded_registry, layout.versioned_key("acme.X", 2))
    with Registry(seeded_registry) as registry:
        with pytest.raises(CorruptRecordError, match=r"acme\.X.* 2"):
            registry.history("acme.X")
        assert seen(registry.history("dspy.Predict"))[0] == (2, 5)


def test_i10_a_version_in_the_place_of_another_is_named(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer, Registry(seeded_registry) as registry:
        for duration in (5, 6, 7):
            writer.register_module(module("acme.X", duration))
        with registry.snapshot() as snapshot:
            record = bytes(snapshot.raw("dspy.Predict"))
    damage(seeded_registry, layout.versioned_key("acme.X", 2), record)
    with (
        Registry(seeded_registry) as registry,
        pytest.raises(CorruptRecordError, match=r"2 .*acme\.X .*1 .*dspy\.Predict"),
    ):
        registry.history("acme.X")


@given(
    st.lists(
        st.tuples(st.sampled_from(("acme.A", "acme.AB")), st.none() | st.integers(0, 3), st.booleans()), max_size=60
    )
)
@settings(max_examples=25)
def test_i8_history_is_what_was_registered(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int | None, bool]]
) -> None:
    """Against a list of all versions ever; None unregisters, and some steps share a commit."""
    folder = tmp_path_factory.mktemp("history") / "registry"
    ever: dict[str, list[int]] = {"acme.A": [], "acme.AB": []}
    registered: set[str] = set()

    def stage(draft: Any, batch: list[tuple[str, int | None, bool]]) -> None:
        for name, duration, _ in batch:
            if duration is None:
                if name in registered:
                    draft.unregister(name)
                registered.discard(name)
                continue
            if name not in registered or ever[name][-1] != duration:
                ever[name].append(duration)
            draft.register(module(name, duration))
            registered.add(name)

    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        batch: list[tuple[str, int | None, bool]] = []
        for step in [*steps, ("acme.A", None, True)]:
            batch.append(step)
            if step[2]:
                writer.store.committer.commit(lambda draft, batch=batch: stage(draft, batch))  # type: ignore[misc]
                batch = []
                for name, versions in ever.items():
                    kept = KEPT if name in registered else layout.HISTORY_VERSIONS
                    expected = list(enumerate(versions, 1))[-kept:][::-1]
                    if expected:
                        assert seen(registry.history(name)) == expected
                    else:
                        with pytest.raises(UnknownModuleError):
                            registry.history(name)


@pytest.mark.parametrize(
    ("fields", "changed"),
    [
        ({}, ()),
        ({"category": "other"}, ("category",)),
        ({"capabilities": ("y", "x")}, ("capabilities",)),
        ({"requirements": Requirements(memory="high", extra={"tokens": 5})}, ("requirements.memory",)),
        ({"requirements": Requirements()}, ("requirements.tokens",)),
        ({"metadata": {"a": True, "b": {"c": 1}}}, ("metadata.a",)),
        ({"metadata": {"b": {"c": 2}, "d": None}}, ("metadata.b", "metadata.d", "metadata.a")),
        ({"native_available": True, "estimated_duration": 2}, ("estimated_duration", "native_available")),
    ],
)
def test_which_fields_changed(fields: dict[str, Any], changed: tuple[str, ...]) -> None:
    given = {
        "name": "acme.X",
        "capabilities": ("x", "y"),
        "requirements": Requirements(extra={"tokens": 5}),
        "metadata": {"a": 1, "b": {"c": 1}},
    }
    assert tuple(changed_values(ModuleInfo(**given), ModuleInfo(**{**given, **fields}))) == changed


def test_names_in_the_history(writer: RegistryWriter, registry_folder: Path) -> None:
    for duration in range(3):
        writer.register_modules([module(name, duration) for name in ("acme.B", "acme.A", "acme.A.B", "b.C")])
    writer.unregister_module("acme.A")
    environment = attach(registry_folder)
    try:
        with environment.reading() as txn:
            assert list(kept_names(txn, environment.dbs, "acme.")) == ["acme.A", "acme.A.B", "acme.B"]
            assert list(kept_names(txn, environment.dbs, "")) == ["acme.A", "acme.A.B", "acme.B", "b.C"]
            assert list(kept_names(txn, environment.dbs, "z")) == []
    finally:
        detach(environment)
