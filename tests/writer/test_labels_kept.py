"""Labels in copies of a registry: backups, restores, formats, and what an upgrade makes possible."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from dspy_registry import (
    CorruptRecordError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    UnknownLabelError,
    UpgradeRequiredError,
)
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.layout import label_key, versioned_key
from dspy_registry.writer.daemon.change_lines import log_change
from dspy_registry.writer.repair.repair import repair
from dspy_registry.writer.restore import restore
from dspy_registry.writer.upgrade import upgrade
from tests.conftest import violations
from tests.support import TESTS
from tests.support.raw_access import behind, flipped
from tests.support.usage_helpers import batches, merge

NAME = "acme.Qa"


def labelled(folder: Path) -> None:
    with RegistryWriter(folder) as writer:
        for duration in range(1, 25):
            writer.register_module(ModuleInfo(NAME, estimated_duration=duration))
            if duration == 3:
                writer.set_label(NAME, "live", {2: 90, 3: 10})


def answers(folder: Path) -> tuple[object, ...]:
    with Registry(folder) as registry:
        keys = [registry.resolve(f"{NAME}@live", key=f"user-{number}") for number in range(50)]
        return registry.labels(NAME), keys, registry.history(NAME)


def test_a_backup_and_a_restore_carry_labels(registry_folder: Path, tmp_path: Path) -> None:
    labelled(registry_folder)
    before = answers(registry_folder)
    backup(tmp_path / "copy", registry_folder)
    assert answers(tmp_path / "copy") == before
    with RegistryWriter(registry_folder) as writer:
        writer.remove_label(NAME, "live")
    restore(tmp_path / "copy", registry_folder)
    with RegistryWriter(registry_folder):
        pass
    assert answers(registry_folder) == before
    assert violations(tmp_path / "copy") == []


def test_format_1_has_versions_and_no_labels_until_it_is_upgraded(registry_folder: Path) -> None:
    shutil.copytree(TESTS / "fixtures" / "release-0.1.0" / "full", registry_folder)
    with Registry(registry_folder) as registry:
        name = next(name for name in registry if len(registry.history(name)) > 2)
        kept = {stored.provenance.version: stored.info for stored in registry.history(name)}
        assert {version: registry.get_module(f"{name}@{version}") for version in kept} == kept
        assert registry.labels(name) == {}
        with pytest.raises(UnknownLabelError):
            registry.get_module(f"{name}@champion")
    with RegistryWriter(registry_folder) as writer, pytest.raises(UpgradeRequiredError):
        writer.set_label(name, "champion", min(kept))
    upgrade(registry_folder)
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert {stored.provenance.version: stored.info for stored in registry.history(name)} == kept
        writer.set_label(name, "champion", min(kept))
        assert registry.get_module(f"{name}@champion") == kept[min(kept)]


def test_format_2_without_labels_gets_some(registry_folder: Path) -> None:
    shutil.copytree(TESTS / "fixtures" / "format-2" / "full", registry_folder)
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        name = next(iter(registry))
        assert registry.labels(name) == {}
        writer.set_label(name, "champion", registry.resolve(name).version)
        assert registry.get_module(f"{name}@champion") == registry[name]


def test_the_daemons_log_has_a_line_for_each_label(registry_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    labelled(registry_folder)
    caplog.set_level(logging.INFO, "dspy_registry")
    with RegistryWriter(registry_folder) as writer:
        writer.set_label(NAME, "live", 24)
        change = writer.store.committer.last_change
        assert change is not None
        log_change(change)
        writer.remove_label(NAME, "live")
        gone = writer.store.committer.last_change
        assert gone is not None
        log_change(gone)
    facts = [vars(record)["facts"] for record in caplog.records if "facts" in vars(record)]
    assert [(fact["action"], fact["name"], fact["label"], fact["old"], fact["new"]) for fact in facts] == [
        ("label set", NAME, "live", "2=90 3=10", "24"),
        ("label removed", NAME, "live", "24", None),
    ]


def test_a_damaged_label_is_told_and_can_be_set_again(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    labelled(folder)
    key = label_key(NAME, "live")
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        with behind(writer) as (txn, dbs):
            txn.put(key, flipped(txn.get(key, db=dbs.labels)), db=dbs.labels)
        assert any(found.startswith("I10 labels/") for found in violations(folder))
        with registry.snapshot() as snapshot, pytest.raises(CorruptRecordError):
            snapshot.get_module(f"{NAME}@live")
        assert registry.get_module(NAME).estimated_duration == 24
        writer.set_label(NAME, "live", 24)
        assert registry.get_module(f"{NAME}@live").estimated_duration == 24


def test_calls_reported_by_version_count_for_that_version(registry_folder: Path) -> None:
    labelled(registry_folder)
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.set_label(NAME, "champion", 20)
        merge(writer, batches([(f"{NAME}@20", 7.0), (f"{NAME}@champion", 7.0), (f"{NAME}@live", 7.0), ("qa@20", 7.0)]))
        assert registry.usage(NAME).calls == 4
        assert registry.usage(f"{NAME}@champion").calls == registry.usage(NAME, 20).calls == 3
        assert registry.usage(NAME, "champion").calls == 3
        assert registry.usage(NAME, 24).calls == 0
        advised = registry.routing_recommendation(f"{NAME}@champion", basis="observed", input_size=500)
        assert advised == registry.routing_recommendation(f"{NAME}@20", basis="observed", input_size=500)
        assert registry.estimate_duration(f"{NAME}@champion") == 20


def test_a_repair_keeps_labels_and_what_they_name(tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    labelled(folder)
    with RegistryWriter(folder) as writer:
        writer.set_label(NAME, "lost", {12: 1, 24: 1})
        with behind(writer) as (txn, dbs):
            assert txn.delete(versioned_key(NAME, 12), db=dbs.history)
    done = repair(folder, tmp_path / "new")
    assert {lost.where for lost in done.lost if lost.where.startswith("labels")} == {f"labels/{NAME}/lost"}
    assert violations(tmp_path / "new") == []
    with Registry(tmp_path / "new") as new:
        assert list(new.labels(NAME)) == ["live"]
        assert [new.get_module(f"{NAME}@{version}").estimated_duration for version in (2, 3, 24)] == [2, 3, 24]
