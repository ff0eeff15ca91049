"""What the writer reads of the committed registry within one transaction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.registry_store import codec
from dspy_registry.registry_store.labels import label_update
from dspy_registry.registry_store.lookup import load_state
from dspy_registry.writer import catalog, failpoints, labels
from dspy_registry.writer.draft import Draft

UPDATES = (label_update("acme.One", "stable", 1, None),)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the records that were decoded, in order."""
    names: list[str] = []
    open_record: Callable[[Any, str], Any] = codec.open_record

    def noted(value: Any, name: str) -> Any:
        names.append(name)
        return open_record(value, name)

    monkeypatch.setattr(catalog, "open_record", noted)
    return names


def test_a_record_is_decoded_once_in_a_commit(registry_folder: Path, decoded: list[str]) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(ModuleInfo("acme.One"))
        decoded.clear()
        writer.register_module(ModuleInfo("acme.One", metadata={"n": 1}))
        assert decoded == ["acme.One"]


def test_each_commit_reads_anew(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        for number in range(3):
            writer.register_module(ModuleInfo("acme.One", metadata={"n": number}), expected_version=number)


def label_and_fail(draft: Draft) -> None:
    labels.set_labels(draft, UPDATES)
    raise ZeroDivisionError


def test_what_is_known_to_be_empty_is_what_is_empty(registry_folder: Path) -> None:
    def holds(writer: RegistryWriter) -> dict[str, bool]:
        found: dict[str, bool] = {}

        def look(draft: Draft) -> None:
            for kind in ("history", "layers", "programs", "labels"):
                database = getattr(draft.catalog.dbs, kind)
                found[kind] = getattr(draft.catalog, f"has_{kind}")
                assert found[kind] == bool(draft.catalog._txn.stat(database)["entries"])

        writer.store.committer.commit(look)
        return found

    with RegistryWriter(registry_folder) as writer:
        assert not holds(writer)["labels"]
        writer.register_module(ModuleInfo("acme.One"))
        assert not holds(writer)["history"]
        writer.register_module(ModuleInfo("acme.One", metadata={"n": 1}))
        assert holds(writer)["history"]
        with pytest.raises(ZeroDivisionError):  # a commit that is undone changes nothing of that
            writer.store.committer.commit(label_and_fail)
        assert not holds(writer)["labels"]
        writer.set_label("acme.One", "stable", 1)
        assert holds(writer)["labels"]
        writer.remove_label("acme.One", "stable")
        assert not holds(writer)["labels"]
        writer.set_label("acme.One", "stable", 2)
        assert holds(writer)["labels"]


def test_the_head_is_remembered_until_a_commit_fails(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def head(writer: RegistryWriter) -> bool:
        """Whether the head was remembered. It is the stored one in any case."""
        remembered: list[bool] = []

        def look(draft: Draft) -> None:
            catalog = draft.catalog
            assert catalog.state == load_state(catalog._txn, catalog.dbs)
            remembered.append(catalog.state is writer.store.committer._known.state)

        writer.store.committer.commit(look)
        return remembered[0]

    with RegistryWriter(registry_folder) as writer:
        writer.register_module(ModuleInfo("acme.One"))
        assert head(writer)
        with pytest.raises(ZeroDivisionError):
            writer.store.committer.commit(label_and_fail)
        writer.reset_usage("acme.One")  # makes no revision
        assert head(writer)
        with monkeypatch.context() as patched:
            patched.setattr(failpoints, "reach", fail_before_the_commit)
            with pytest.raises(ZeroDivisionError):
                writer.register_module(ModuleInfo("acme.Two"))
        assert not head(writer)
        writer.register_module(ModuleInfo("acme.Two"))
        assert head(writer)


def fail_before_the_commit(point: str) -> None:
    if point == "before_commit":
        raise ZeroDivisionError


def test_modules_that_were_read_are_kept_up_to_a_bound(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "_MODULES_KEPT", 2)
    names = [f"acme.M{number}" for number in range(5)]
    with RegistryWriter(registry_folder) as writer:
        writer.register_modules([ModuleInfo(name) for name in names])

        def stage(draft: Draft) -> None:
            for _ in range(2):
                for name in (*names, "acme.Missing"):
                    stored = draft.catalog.module(name)
                    assert (stored.info.name if stored else None) == (name if name in names else None)
                    assert len(draft.catalog._modules) <= 2

        writer.store.committer.commit(stage)


def test_versions_that_are_left_out_are_told_apart_from_both_ends(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        for number in range(7):
            writer.register_module(ModuleInfo("acme.One", metadata={"n": number}))
        writer.register_module(ModuleInfo("acme.One2"))
        environment = writer.store.environment
        with environment.reading() as txn:
            found = catalog.Catalog(txn, environment.dbs)
            assert found.kept_versions("acme.One") == [6, 5, 4, 3, 2, 1]
            assert found.kept_versions("acme.One", range(3, 5)) == [6, 5, 2, 1]
            assert found.kept_versions("acme.One", range(-9, 7)) == []
            assert found.kept_versions("acme.None", range(3, 5)) == []
