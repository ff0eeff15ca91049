"""What can be read of a damaged registry is written into a sound one, and all that is not as it was is named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    DamagedStoreError,
    InvalidArgumentError,
    ModuleInfo,
    Policy,
    Registry,
    RegistryNotFoundError,
    RegistryWriter,
    StoreError,
)
from dspy_registry.registry_store import layout, meta_pages
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.codec import database_seal, key_seal, seal
from dspy_registry.registry_store.layout import versioned_key
from dspy_registry.registry_store.rollout_rows import rollout_key
from dspy_registry.writer.repair.repair import Repaired, repair
from dspy_registry.writer.restore import restore
from dspy_registry.writer.rollouts import RolloutRequest, steer
from tests.conftest import violations
from tests.stress.damage_bytes import PAGES, damage_data
from tests.stress.oracle import contents
from tests.support import TESTS
from tests.support.raw_access import flipped, folder, opened
from tests.support.selection import each
from tests.writer.test_programs import plain_document, publish

__all__ = ["folder"]

PAGE = 4096


def files_of(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def damage(path: Path, database: str, key: bytes) -> None:
    """One bit of a stored value, in the newest state and in the one before."""
    with opened(path) as (get, put):
        put(database, key, flipped(get(database, key)))
    with opened(path) as (get, put):
        put(database, key, get(database, key))


def lost(done: Repaired) -> dict[str, str]:
    return {each.where: each.reason for each in done.lost}


def taken(done: Repaired) -> dict[str, str]:
    return {each.where: each.origin for each in done.taken}


def facts(path: Path) -> dict[str, Any]:
    with Registry(path) as registry:
        return {
            name: (stored.info, stored.provenance.version) for name in registry for stored in [registry.describe(name)]
        }


def test_a_sound_registry_comes_out_as_it_was(folder: Path, tmp_path: Path) -> None:
    done = repair(folder, tmp_path / "new")
    assert (done.lost, done.taken, done.damage) == ((), (), ())
    assert violations(tmp_path / "new") == []
    assert contents(tmp_path / "new", ["cot"]) == contents(folder, ["cot"])
    with Registry(folder) as old, Registry(tmp_path / "new") as new:
        assert (list(new), new.revision) == (list(old), old.revision)
        assert new.history("a.Twenty") == old.history("a.Twenty")
        assert new.find(capabilities=("z",)) == old.find(capabilities=("z",))


def test_nothing_is_written_into_the_damaged_folder(folder: Path, tmp_path: Path) -> None:
    damage(folder, "modules", b"a.Twenty")
    before = files_of(folder)
    repair(folder, tmp_path / "new")
    assert files_of(folder) == before


def test_a_damaged_record_goes_back_to_its_last_version_kept(folder: Path, tmp_path: Path) -> None:
    damage(folder, "modules", b"a.Twenty")
    done = repair(folder, tmp_path / "new")
    assert "history, version 19" in taken(done)["modules/a.Twenty"]
    info, version = facts(tmp_path / "new")["a.Twenty"]
    assert (info.estimated_duration, version) == (18, 19)
    assert violations(tmp_path / "new") == []


def test_a_row_that_the_last_commit_damaged_is_taken_from_the_state_before(folder: Path, tmp_path: Path) -> None:
    expected = facts(folder)
    with opened(folder) as (get, put):
        put("modules", b"a.Twenty", flipped(get("modules", b"a.Twenty")))
    done = repair(folder, tmp_path / "new")
    assert "state before" in taken(done)["modules/a.Twenty"]
    assert facts(tmp_path / "new") == expected


def test_a_damaged_record_is_taken_from_a_backup(folder: Path, tmp_path: Path) -> None:
    backup(tmp_path / "backups" / "one", folder)
    damage(folder, "modules", b"a.Twenty")
    expected = facts(tmp_path / "backups" / "one")
    done = repair(folder, tmp_path / "new", backups=tmp_path / "backups")
    assert "backup, version 20" in taken(done)["modules/a.Twenty"]
    assert facts(tmp_path / "new") == expected
    assert done.lost == ()


def test_a_damaged_record_is_made_of_what_is_declared(folder: Path, tmp_path: Path) -> None:
    expected = facts(folder)["a.Layered"]
    damage(folder, "modules", b"a.Layered")
    done = repair(folder, tmp_path / "new")
    assert facts(tmp_path / "new")["a.Layered"] == expected
    assert "modules/a.Layered" in taken(done)


def test_what_nothing_has_is_named_with_its_reason(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(ModuleInfo("acme.Only"))
        writer.set_alias("only", "acme.Only")
    damage(seeded_registry, "modules", b"acme.Only")
    done = repair(seeded_registry, tmp_path / "new")
    assert set(lost(done)) == {"modules/acme.Only", "aliases/only"}
    assert "checksum" in lost(done)["modules/acme.Only"]
    assert violations(tmp_path / "new") == []


def test_a_lost_module_is_taken_from_manifests(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(ModuleInfo("acme.Only"))
    damage(seeded_registry, "modules", b"acme.Only")
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "a.toml").write_text('[[modules]]\nname = "acme.Only"\ncategory = "mine"\n')
    done = repair(seeded_registry, tmp_path / "new", manifests=tmp_path / "manifests")
    assert (lost(done), taken(done)["modules/acme.Only"]) == ({}, "manifests")
    assert facts(tmp_path / "new")["acme.Only"][0].category == "mine"


def test_a_gap_in_the_history_is_closed_and_told(folder: Path, tmp_path: Path) -> None:
    damage(folder, "history", versioned_key("a.Twenty", 19))
    done = repair(folder, tmp_path / "new")
    assert "history/a.Twenty/19" in lost(done)
    info, version = facts(tmp_path / "new")["a.Twenty"]
    assert (info.estimated_duration, version) == (19, 19)
    assert violations(tmp_path / "new") == []


@pytest.mark.parametrize(
    "database", each(3, ["layers", "aliases", "sequences", "postings", "changes", "meta", "requests"])
)
def test_a_database_whose_every_value_is_damaged_leaves_a_sound_registry(
    folder: Path, tmp_path: Path, database: str
) -> None:
    with opened(folder) as (get, put):
        for key in keys_of(folder, database):
            if key not in (layout.META_FORMAT, layout.META_ID):
                put(database, key, flipped(get(database, key)))
    with opened(folder) as (get, put):
        for key in keys_of(folder, database):
            put(database, key, get(database, key))
    done = repair(folder, tmp_path / "new")
    assert violations(tmp_path / "new") == []
    assert facts(tmp_path / "new") == facts_of_damaged(folder)
    assert bool(done.lost) == (database in ("aliases", "layers", "meta"))


def keys_of(path: Path, database: str) -> list[bytes]:
    from dspy_registry.registry_store.sharing import attach, detach

    environment = attach(path)
    try:
        with environment.reading() as txn:
            return [bytes(key) for key in txn.cursor(getattr(environment.dbs, database)).iternext(values=False)]
    finally:
        detach(environment)


def facts_of_damaged(path: Path) -> dict[str, Any]:
    """Records alone, in the order of their keys."""
    from dspy_registry.writer.repair.modules import open_record

    found = {}
    with opened(path) as (get, _):
        for key in keys_of(path, "modules"):
            stored = open_record(get("modules", key), key.decode())
            found[key.decode()] = (stored.info, stored.provenance.version)
    return found


def test_both_meta_pages_may_be_gone(folder: Path, tmp_path: Path) -> None:
    expected = facts(folder)
    with (folder / "data.mdb").open("r+b") as file:
        file.write(bytes(2 * PAGE))
    done = repair(folder, tmp_path / "new")
    assert facts(tmp_path / "new") == expected
    assert any("meta page" in text for text in done.damage)
    assert violations(tmp_path / "new") == []


def test_the_newer_state_is_told_by_its_revision(folder: Path, tmp_path: Path) -> None:
    """One bit of the newest meta page's transaction number makes LMDB go by the older page."""
    expected = facts(folder)
    with (folder / "data.mdb").open("r+b") as file:
        pages = [meta_pages.parse_meta_page(file.read(PAGE)) for _ in range(2)]
        older = min(range(2), key=lambda number: pages[number].transaction)  # type: ignore[union-attr]
        file.seek(older * PAGE + 151)
        file.write(b"\x20")
    with pytest.raises(AssertionError):
        assert facts(folder) == expected
    done = repair(folder, tmp_path / "new")
    assert (facts(tmp_path / "new"), done.lost) == (expected, ())


@pytest.mark.parametrize("seed", each(4, range(16)))
def test_whatever_happens_to_pages_the_new_registry_is_sound_and_tells(folder: Path, tmp_path: Path, seed: int) -> None:
    was = contents(folder, ["cot"])
    chance = random.Random(seed)
    damage_data(folder, list(PAGES)[seed % len(PAGES)], chance)
    try:
        done = repair(folder, tmp_path / "new")
    except StoreError:
        assert not (tmp_path / "new").exists()
        return
    assert violations(tmp_path / "new") == []
    assert contents(tmp_path / "new", ["cot"]) == was or done.lost or done.taken


def test_a_registry_of_the_former_release_is_repaired_into_the_new_format(tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(TESTS / "fixtures" / "release-0.1.0" / "full", old)
    expected = facts(old)
    done = repair(old, tmp_path / "new")
    assert (facts(tmp_path / "new"), done.lost) == (expected, ())
    assert violations(tmp_path / "new") == []


def test_what_was_repaired_can_be_restored(folder: Path, tmp_path: Path) -> None:
    expected = facts(folder)
    with (folder / "data.mdb").open("r+b") as file:
        file.write(bytes(2 * PAGE))
    with pytest.raises(DamagedStoreError):
        Registry(folder)
    repair(folder, tmp_path / "new")
    restore(tmp_path / "new", folder)
    assert facts(folder) == expected


def test_where_nothing_can_be_read_nothing_is_written(seeded_registry: Path, tmp_path: Path) -> None:
    (seeded_registry / "data.mdb").write_bytes(b"")
    with pytest.raises(StoreError, match="no module"):
        repair(seeded_registry, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_an_empty_data_file_is_replaced_by_the_backup(seeded_registry: Path, tmp_path: Path) -> None:
    backup(tmp_path / "backup", seeded_registry)
    (seeded_registry / "data.mdb").unlink()
    done = repair(seeded_registry, tmp_path / "new", backups=tmp_path / "backup")
    assert facts(tmp_path / "new") == facts(tmp_path / "backup")
    assert done.taken


def test_a_registry_with_a_writer_is_refused(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(seeded_registry), pytest.raises(StoreError, match="has a writer"):
        repair(seeded_registry, tmp_path / "new")


def test_places_are_refused_by_name(seeded_registry: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError):
        repair(seeded_registry, seeded_registry / "new")
    with pytest.raises(InvalidArgumentError):
        repair(seeded_registry, seeded_registry)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InvalidArgumentError):
        repair(seeded_registry, tmp_path / "full")
    with pytest.raises(RegistryNotFoundError):
        repair(tmp_path / "none", tmp_path / "new")
    with pytest.raises(RegistryNotFoundError):
        repair(seeded_registry, tmp_path / "new", backups=tmp_path / "full")


@pytest.fixture
def labelled(seeded_registry: Path) -> Path:
    """A module with 24 versions, the second of which is labelled, and programs."""
    with RegistryWriter(seeded_registry) as writer:
        for duration in range(3):
            writer.register_module(ModuleInfo("acme.Qa", estimated_duration=duration))
        writer.set_label("acme.Qa", "first", 2)
        for duration in range(3, 24):
            writer.register_module(ModuleInfo("acme.Qa", estimated_duration=duration))
        writer.set_label("acme.Qa", "live", {24: 90, 20: 10})
        writer.set_policy("acme.*", Policy(max_concurrency=4))
        publish(writer, plain_document(size=200_000), name="acme.Program", label="candidate")
    assert violations(seeded_registry) == []
    return seeded_registry


def test_labels_programs_and_policies_come_out_as_they_were(labelled: Path, tmp_path: Path) -> None:
    done = repair(labelled, tmp_path / "new")
    assert (done.lost, done.taken) == ((), ())
    assert violations(tmp_path / "new") == []
    for database in ("labels", "programs", "policies"):
        assert rows_of(tmp_path / "new", database) == rows_of(labelled, database)
    with Registry(tmp_path / "new") as registry:
        assert registry.get_module("acme.Qa@first").estimated_duration == 1


def test_a_label_whose_version_is_lost_is_named(labelled: Path, tmp_path: Path) -> None:
    damage(labelled, "history", versioned_key("acme.Qa", 20))
    done = repair(labelled, tmp_path / "new")
    assert {where for where in lost(done) if where.startswith("labels/")} == {"labels/acme.Qa/live"}
    assert "history/acme.Qa/2" not in lost(done)
    assert violations(tmp_path / "new") == []
    with Registry(tmp_path / "new") as registry:
        assert registry.get_module("acme.Qa@first").estimated_duration == 1


@pytest.mark.parametrize("has_backup", [False, True])
def test_a_damaged_program_is_taken_from_the_backup_or_named(labelled: Path, tmp_path: Path, has_backup: bool) -> None:
    backup(tmp_path / "backup", labelled)
    piece = next(key for key in rows_of(labelled, "programs") if len(key) > 32)
    damage(labelled, "programs", piece)
    done = repair(labelled, tmp_path / "new", backups=tmp_path / "backup" if has_backup else None)
    where = f"programs/{piece[:32].hex()[:12]}"
    assert (where in lost(done), where in taken(done)) == (not has_backup, has_backup)
    assert violations(tmp_path / "new") == []
    assert "acme.Program" in facts(tmp_path / "new")


def rows_of(path: Path, database: str) -> dict[bytes, bytes]:
    with opened(path) as (get, _):
        return {key: get(database, key) for key in keys_of(path, database)}


POLICY = b"client\0acme.*"


@pytest.mark.parametrize("has_backup", [False, True])
@pytest.mark.parametrize("is_page", [False, True])
def test_a_damaged_policy_is_taken_from_the_backup_or_named(
    labelled: Path, tmp_path: Path, has_backup: bool, is_page: bool
) -> None:
    backup(tmp_path / "backup", labelled)
    expected = rows_of(labelled, "policies")
    if is_page:
        overwrite_pages(labelled, POLICY + b"\x81")
    else:
        damage(labelled, "policies", POLICY)
    done = repair(labelled, tmp_path / "new", backups=tmp_path / "backup" if has_backup else None)
    where = "policies/client/acme.*"
    assert (where in taken(done), any(place.startswith("policies") for place in lost(done))) == (
        has_backup,
        not has_backup,
    )
    assert has_backup or is_page or where in lost(done)
    assert rows_of(tmp_path / "new", "policies") == (expected if has_backup else {})
    assert violations(tmp_path / "new") == []


def test_a_policy_that_is_none_is_named_and_hinders_nothing(labelled: Path, tmp_path: Path) -> None:
    row = seal(b"\x93\x01\x02\x03", key_seal(database_seal(layout.POLICIES), POLICY, 2))
    for _ in range(2):
        with opened(labelled) as (_, put):
            put("policies", POLICY, row)
    done = repair(labelled, tmp_path / "new")
    assert "cannot be decoded" in lost(done)["policies/client/acme.*"]
    assert violations(tmp_path / "new") == []


def test_a_damaged_rollout_is_named(labelled: Path, tmp_path: Path) -> None:
    request = RolloutRequest("acme.Qa", "first", "begin", 24)
    with RegistryWriter(labelled) as writer:
        writer.store.committer.commit(lambda draft: steer(draft, request))
    repair(labelled, tmp_path / "sound")
    key = rollout_key("acme.Qa", "first")
    assert rows_of(tmp_path / "sound", "meta")[key] == rows_of(labelled, "meta")[key]
    damage(labelled, "meta", key)
    done = repair(labelled, tmp_path / "new")
    assert list(lost(done)) == [f"meta/{key.decode()}".replace("\0", "/")]
    assert key not in rows_of(tmp_path / "new", "meta")


def overwrite_pages(path: Path, content: bytes) -> None:
    """With zeros: every page that holds this."""
    data = bytearray((path / layout.DATA_FILE).read_bytes())
    for at in range(0, len(data), PAGE):
        if content in data[at : at + PAGE]:
            data[at : at + PAGE] = bytes(PAGE)
    (path / layout.DATA_FILE).write_bytes(data)
