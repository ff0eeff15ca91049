"""`upgrade`: the same answers in the newest format, whole or not at all, beside readers that were open before."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import lmdb
import pytest

from dspy_registry import (
    FormatVersionError,
    InvalidArgumentError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    StoreError,
)
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.writer.failpoints import OF_AN_UPGRADE, VARIABLE
from dspy_registry.writer.leftovers import BUILDING
from dspy_registry.writer.restore import restore
from dspy_registry.writer.upgrade import upgrade
from tests.conftest import violations
from tests.registry_store.test_release_fixtures import RELEASE, TOLD, answers_of
from tests.support.command import answer, run, run_in_child
from tests.support.processes import Process, child, requests, say
from tests.support.selection import each
from tests.writer.test_full_disk import fill, small_disk
from tests.writer.test_history import damage
from tests.writer.test_restore import carry_out, procedures

__all__ = ["small_disk"]

INTACT = 0x2144DF1C
CHANGED = len(OF_AN_UPGRADE) - 1  # the failpoint from which on the registry is the new one


@pytest.fixture
def old(registry_folder: Path) -> Path:
    """A registry of format 1 with something of everything in it, as release 0.1.0 left it."""
    shutil.copytree(RELEASE / "full", registry_folder)
    return registry_folder


def format_of(folder: Path) -> int:
    environment = attach(folder)
    try:
        return environment.dbs.format
    finally:
        detach(environment)


def rows(folder: Path) -> dict[str, dict[bytes, bytes]]:
    """Every row of every database, as bytes."""
    environment = attach(folder)
    try:
        with environment.reading() as txn:
            names = [name.decode() for name in layout.DATABASES]
            handles = {name: getattr(environment.dbs, name) for name in names}
            return {name: dict(txn.cursor(handle)) for name, handle in handles.items() if handle is not None}
    finally:
        detach(environment)


@pytest.mark.parametrize("kind", sorted(TOLD["release-0.1.0"]))
def test_an_upgrade_changes_no_answer(registry_folder: Path, kind: str) -> None:
    told = TOLD["release-0.1.0"][kind]
    shutil.copytree(RELEASE / kind, registry_folder)
    done = upgrade(registry_folder)
    assert (done.former_format, done.format, done.revision) == (1, 2, told["revision"])
    assert answers_of(registry_folder, told) == told
    assert violations(registry_folder) == []
    assert not (registry_folder / BUILDING).exists()


def test_i24_every_value_is_sealed_under_its_key_afterwards(old: Path) -> None:
    before = rows(old)
    upgrade(old)
    after = rows(old)
    assert set(after) == {name.decode() for name in layout.DATABASES}
    for database, found in before.items():
        assert after[database].keys() == found.keys()
        for key, value in after[database].items():
            if (database, key) in (("meta", b"format"), ("meta", b"id")):
                continue
            if database in ("modules", "history"):
                assert value == found[key]
            else:
                assert crc32(value, crc32(database.encode() + b"\0" + key)) == INTACT
                assert value[:-4] == found[key][:-4]


def test_the_page_says_how(old: Path, tmp_path: Path) -> None:
    ((stop, command, start),) = procedures("upgrade")
    assert (stop, start) == ("systemctl stop dspy-registry", "systemctl start dspy-registry")
    carry_out([f"{command.replace('/backups/format-1', str(tmp_path / 'kept'))} --yes"], old, tmp_path)
    assert (format_of(old), format_of(tmp_path / "kept")) == (2, 1)


def test_a_second_upgrade_changes_nothing(old: Path) -> None:
    upgrade(old)
    before = {entry.name for entry in old.iterdir()}, (old / "data.mdb").stat().st_ino
    done = upgrade(old)
    assert (done.former_format, done.backup) == (2, None)
    assert ({entry.name for entry in old.iterdir()}, (old / "data.mdb").stat().st_ino) == before


def test_the_backup_is_the_way_back(old: Path, tmp_path: Path) -> None:
    before = rows(old)
    done = upgrade(old, tmp_path / "kept")
    assert done.backup == str(tmp_path / "kept")
    with RegistryWriter(old) as writer:
        writer.register_module(ModuleInfo("acme.Later"))
    restore(tmp_path / "kept", old)
    after = rows(old)
    for database in before:
        before[database].pop(b"id", None), after[database].pop(b"id", None)
    assert after == before  # byte for byte, and no further database
    assert format_of(old) == 1
    assert answers_of(old, TOLD["release-0.1.0"]["full"]) == TOLD["release-0.1.0"]["full"]


# Killed


@pytest.mark.parametrize("failpoint", each(2, OF_AN_UPGRADE))
def test_i24_an_upgrade_killed_anywhere_leaves_one_whole_registry(old: Path, failpoint: str) -> None:
    done = run_in_child("upgrade", "--yes", "--path", old, **{VARIABLE: f"{failpoint}=kill"})
    assert done.returncode == -signal.SIGKILL
    is_new = OF_AN_UPGRADE.index(failpoint) >= CHANGED
    with RegistryWriter(old), Registry(old) as registry:
        assert len(registry) == len(TOLD["release-0.1.0"]["full"]["modules"])
    assert format_of(old) == (2 if is_new else 1)
    assert violations(old) == []
    assert upgrade(old).former_format == (2 if is_new else 1)
    assert answers_of(old, TOLD["release-0.1.0"]["full"]) == TOLD["release-0.1.0"]["full"]
    assert not (old / BUILDING).exists()


# Beside live readers


def read(path: str) -> None:
    """A process that reads all the while; it says the revision, the first name by order, and a record."""
    with Registry(path) as registry, registry.snapshot() as held:
        for name in requests():
            found = registry.find_by_capability("reasoning")
            say([registry.revision, len(found), registry[name].estimated_duration, len(held), held.revision])


@pytest.fixture
def reader(old: Path) -> Iterator[Process]:
    with child(__name__, "read", old) as process:
        yield process


def test_readers_of_this_release_go_on(old: Path, reader: Process) -> None:
    before = reader.ask("client.Module03")
    upgrade(old)
    assert reader.ask("client.Module03") == before
    with RegistryWriter(old) as writer:
        writer.register_module(ModuleInfo("client.Module03", estimated_duration=77))
        assert reader.ask("client.Module03")[2] == 77


@pytest.mark.parametrize("failpoint", each(2, OF_AN_UPGRADE))
def test_readers_go_on_where_it_was_killed(old: Path, reader: Process, failpoint: str) -> None:
    before = reader.ask("client.Module03")
    run_in_child("upgrade", "--yes", "--path", old, **{VARIABLE: f"{failpoint}=kill"})
    assert reader.ask("client.Module03") == before
    with RegistryWriter(old):
        assert reader.ask("client.Module03")[:4] == before[:4]


class FirstRelease:
    """What a process of release 0.1.0 does with the stored bytes: one format, every value sealed over itself."""

    def __init__(self, folder: Path) -> None:
        self._env = lmdb.open(str(folder), readonly=True, max_dbs=20, max_readers=layout.MAX_READERS)
        self._dbs = {name: self._env.open_db(name, create=False) for name in layout.DATABASES_OF_FORMAT_1}

    def read(self) -> int:
        """How many values it read. Fails for a value that it would call damaged."""
        with self._env.begin() as txn:
            if txn.get(b"format", db=self._dbs[b"meta"]) != b"1":
                raise FormatVersionError(2, 1)
            values = [row for name, db in self._dbs.items() for row in txn.cursor(db) if name != b"meta"]
        assert all(crc32(value) == INTACT for _, value in values)
        return len(values)

    def close(self) -> None:
        self._env.close()


def first_release(path: str) -> None:
    """A process that does not know format 2. It opens the registry again when it is asked to."""
    release = FirstRelease(Path(path))
    for is_to_open_again in requests():
        if is_to_open_again:
            release.close()
            release = FirstRelease(Path(path))
        try:
            say(release.read())
        except FormatVersionError as error:
            say(str(error))


def test_readers_of_the_first_release_never_meet_a_value_of_the_new_format(old: Path) -> None:
    with child(__name__, "first_release", old) as process:
        before = process.ask(False)
        run_in_child("upgrade", "--yes", "--path", old, **{VARIABLE: "before_opening=kill"})
        assert process.ask(False) == before
        with RegistryWriter(old) as writer:
            writer.register_module(ModuleInfo("acme.Later"))
            assert process.ask(False) == before
        assert "format version 2" in process.ask(True)


# Refused


def test_it_is_refused_while_a_writer_is_open(old: Path) -> None:
    with RegistryWriter(old):
        refused = run("upgrade", "--yes", "--path", old)
        assert refused.returncode != 0
        assert "already has a writer" in refused.stderr
    assert format_of(old) == 1


def test_a_damaged_registry_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    shutil.copytree(RELEASE / "full", folder)
    damage(folder, layout.versioned_key("client.Module03", 12))
    with pytest.raises(StoreError, match="not sound"):
        upgrade(folder)
    assert format_of(folder) == 1
    assert not [entry for entry in folder.iterdir() if entry.is_dir()]


def test_a_backup_folder_that_holds_something_is_refused(old: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thing").touch()
    with pytest.raises(InvalidArgumentError, match="not empty"):
        upgrade(old, tmp_path / "full")
    assert format_of(old) == 1


def test_the_command_tells_where_the_backup_is(old: Path, tmp_path: Path) -> None:
    told: dict[str, Any] = answer("upgrade", "--yes", "--path", old, "--backup", tmp_path / "kept")
    assert (told["former_format"], told["format"], told["backup"]) == (1, 2, str(tmp_path / "kept"))
    assert "has format 2 already" in run("upgrade", "--yes", "--path", old).stdout


def test_it_asks_only_where_it_would_change_something(old: Path, tmp_path: Path) -> None:
    unanswered = run("upgrade", "--path", old)
    assert unanswered.returncode == 1
    assert "nothing was changed.\nWithout a terminal, give --yes.\n" in unanswered.stderr
    with RegistryWriter(old):
        refused = run("upgrade", "--path", old)
    assert (refused.returncode, "Earlier releases" in refused.stderr) == (1, False)
    assert "Stop that writer" in refused.stderr
    run("upgrade", "--yes", "--path", old)
    assert "has format 2 already" in run("upgrade", "--path", old).stdout
    refused = run("upgrade", "--path", tmp_path / "nowhere")
    assert (refused.returncode, "Earlier releases" in refused.stderr) == (1, False)


def test_it_needs_no_lease_to_find_nothing_to_do(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        assert upgrade(registry_folder).backup is None


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_too_little_room_is_refused_before_anything_is_written(
    small_disk: Path, tmp_path: Path, is_elsewhere: bool
) -> None:
    old = small_disk / "registry"
    shutil.copytree(RELEASE / "full", old)
    size = (old / layout.DATA_FILE).stat().st_size
    kept = (tmp_path if is_elsewhere else small_disk) / "kept"
    copies = 1 if is_elsewhere else 2
    ballast = fill(small_disk, copies * size - 4096)
    # Not lock.mdb: whoever looks takes a slot in it.
    before = {name: (old / name).read_bytes() for name in (layout.DATA_FILE, layout.REVISION_FILE)}
    with pytest.raises(StoreError) as caught:
        upgrade(old, kept)
    assert f"{copies * size:,}" in caught.value.message
    assert caught.value.remedy
    assert not kept.exists()
    assert {name: (old / name).read_bytes() for name in before} == before
    ballast.unlink()
    assert upgrade(old, kept).format == layout.FORMAT_VERSION


def test_what_a_killed_upgrade_left_is_removed_by_the_next_writer(old: Path) -> None:
    (old / BUILDING / "deeper").mkdir(parents=True)
    (old / BUILDING / layout.DATA_FILE).write_bytes(b"half")
    RegistryWriter(old).close()
    assert not (old / BUILDING).exists()
    assert format_of(old) == 1
