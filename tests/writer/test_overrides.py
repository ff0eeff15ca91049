"""A client's record over what others declare is an override: it is seen, and `release` ends it."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from dspy_registry import InvalidArgumentError, ModuleInfo, Registry, RegistryWriter, UnknownModuleError
from dspy_registry.registry_store.layers import Layer
from dspy_registry.writer.rollback import read_versions, roll_back
from tests.conftest import violations

MANIFEST = Layer("manifest:a.toml", {"estimated_duration": 7, "metadata": {"owner": "x"}})


@pytest.fixture
def writer(registry_folder: Path) -> RegistryWriter:
    with RegistryWriter(registry_folder) as writer:
        writer.store.committer.commit(lambda draft: draft.declare("acme.A", MANIFEST))
        yield writer


def declare(writer: RegistryWriter, layer: Layer) -> None:
    writer.store.committer.commit(lambda draft: draft.declare("acme.A", layer))


def test_a_clients_record_is_an_override_until_it_is_released(writer: RegistryWriter, registry_folder: Path) -> None:
    with Registry(registry_folder) as registry:
        assert registry.overridden("acme.A") == ()
        writer.register_module(ModuleInfo("acme.A", estimated_duration=9))
        assert registry.overridden("acme.A") == ("manifest:a.toml",)
        declare(writer, msgspec.structs.replace(MANIFEST, fields={"estimated_duration": 8}))
        assert registry["acme.A"].estimated_duration == 9
        writer.set_alias("short", "acme.A")
        revision = writer.release("acme.A")
        assert (registry["acme.A"].estimated_duration, registry.revision) == (8, revision)
        assert registry.describe("acme.A").provenance.source == "manifest:a.toml"
        assert registry.overridden("acme.A") == ()
        assert registry.get_module("short").name == "acme.A"
        assert [kept.info.estimated_duration for kept in registry.history("acme.A")] == [8, 9, 7]
        declare(writer, msgspec.structs.replace(MANIFEST, fields={"estimated_duration": 10}))
        assert registry["acme.A"].estimated_duration == 10
    assert violations(registry_folder) == []


def test_a_rollback_is_an_override_too(writer: RegistryWriter, registry_folder: Path) -> None:
    declare(writer, msgspec.structs.replace(MANIFEST, fields={"estimated_duration": 8}))
    roll_back(writer, read_versions(registry_folder, "acme.A"))
    with Registry(registry_folder) as registry, registry.snapshot() as snapshot:
        assert snapshot.overridden("acme.A") == ("manifest:a.toml",)
        writer.release("acme.A")
        assert registry["acme.A"].estimated_duration == 8


def test_what_core_declares_comes_back_too(writer: RegistryWriter, registry_folder: Path) -> None:
    with Registry(registry_folder) as registry:
        core = registry["dspy.Predict"]
        writer.register_module(msgspec.structs.replace(core, estimated_duration=1))
        assert registry.overridden("predict") == ("core",)
        writer.release("dspy.Predict")
        assert registry["dspy.Predict"] == core


def test_releasing_what_is_no_override_changes_nothing(writer: RegistryWriter) -> None:
    before = writer.revision
    assert writer.release("acme.A") == before
    assert writer.release("dspy.Predict") == before


def test_what_cannot_be_released_is_told(writer: RegistryWriter) -> None:
    writer.register_module(ModuleInfo("acme.Own"))
    with pytest.raises(InvalidArgumentError, match=r"acme\.Own"):
        writer.release("acme.Own")
    for name in ("acme.None", "", "\ud800"):
        with pytest.raises(UnknownModuleError):
            writer.release(name)


def test_an_override_with_an_equal_record_ends_without_a_new_version(
    writer: RegistryWriter, registry_folder: Path
) -> None:
    with Registry(registry_folder) as registry:
        writer.register_module(registry["acme.A"])
        assert registry.overridden("acme.A") == ("manifest:a.toml",)
        writer.release("acme.A")
        assert registry.describe("acme.A").provenance.version == 1
        assert registry.overridden("acme.A") == ()
