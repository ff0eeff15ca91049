"""A backup is one whole revision of a registry in use, or it is not there."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    InvalidArgumentError,
    ModuleInfo,
    Registry,
    RegistryNotFoundError,
    RegistryWriter,
    StoreError,
    StorePermissionError,
)
from dspy_registry.registry_store import backup as module
from dspy_registry.registry_store import layout, opening
from dspy_registry.registry_store.backup import PARTIAL, Backup, backup
from dspy_registry.registry_store.revision import NO_DATA_FILE, RevisionFile, data_identity
from dspy_registry.writer.repair.repair import repair
from tests.conftest import violations
from tests.stress.recording import can_record
from tests.support import fork_server
from tests.support.command import COMMAND, answer, daemon, main_in_child, refusal, run
from tests.support.processes import child, requests, say
from tests.support.selection import each
from tests.writer.test_history import damage

FILES = {"data.mdb", "lock.mdb", "revision"}


@pytest.fixture
def busy(seeded_registry: Path) -> Path:
    """A registry with something of everything in it, and many free pages."""
    with RegistryWriter(seeded_registry) as writer:
        writer.set_alias("cot", "dspy.ChainOfThought")
        writer.register_modules([ModuleInfo(f"acme.M{number}", capabilities=("x",)) for number in range(440)])
        for duration in range(20):
            writer.register_module(ModuleInfo("acme.M1", estimated_duration=duration))
        for number in range(100, 440):
            writer.unregister_module(f"acme.M{number}")
    return seeded_registry


def content(path: Path) -> tuple[Any, ...]:
    with Registry(path) as registry:
        return (
            dict(registry),
            list(registry),
            registry.history("acme.M1"),
            registry.get_module("cot"),
            registry.revision,
        )


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def test_a_backup_is_the_same_registry_in_fewer_bytes(busy: Path, tmp_path: Path) -> None:
    made = backup(tmp_path / "copy", busy)
    assert content(tmp_path / "copy") == content(busy)
    assert names(tmp_path / "copy") == FILES
    assert violations(tmp_path / "copy") == []
    with Registry(busy) as registry:
        assert made == Backup(
            str(tmp_path / "copy"),
            registry.revision,
            registry.committed_at,
            len(registry),
            (tmp_path / "copy" / "data.mdb").stat().st_size,
        )
    assert made.bytes < (busy / "data.mdb").stat().st_size


def test_i13_a_backup_is_a_registry_of_its_own(busy: Path, tmp_path: Path) -> None:
    before = RevisionFile(busy).registry_id
    ids = {before}
    for copy in (tmp_path / "one", tmp_path / "two"):
        backup(copy, busy)
        file = RevisionFile(copy)
        assert file.data_identity == NO_DATA_FILE
        ids.add(file.registry_id)
        with RegistryWriter(copy):
            file = RevisionFile(copy)
            assert file.data_identity == data_identity(copy)
            ids.add(file.registry_id)
    assert len(ids) == 5
    assert RevisionFile(busy).registry_id == before


def test_i13_a_backup_that_is_moved_into_place_gets_an_identity_of_its_own(busy: Path, tmp_path: Path) -> None:
    """Its data file keeps device and inode: the revision file must not take it for the one it knows."""
    backup(tmp_path / "copy", busy)
    before = RevisionFile(tmp_path / "copy").registry_id
    (tmp_path / "copy").rename(tmp_path / "moved")
    with RegistryWriter(tmp_path / "moved"):
        assert RevisionFile(tmp_path / "moved").registry_id != before


def test_the_live_registry_goes_on(busy: Path, tmp_path: Path) -> None:
    with RegistryWriter(busy) as writer, Registry(busy) as registry:
        word = RevisionFile(busy).word[()]
        with registry.snapshot() as snapshot:
            backup(tmp_path / "copy", busy)
            assert RevisionFile(busy).word[()] == word
            revision = writer.register_module(ModuleInfo("acme.Later"))
            assert "acme.Later" not in snapshot
        assert registry["acme.Later"] == ModuleInfo("acme.Later")
        assert registry.revision == revision
    with Registry(tmp_path / "copy") as copy:
        assert "acme.Later" not in copy


def test_a_backup_can_be_written_to_and_backed_up(busy: Path, tmp_path: Path) -> None:
    backup(tmp_path / "one", busy)
    with RegistryWriter(tmp_path / "one") as writer:
        revision = writer.register_module(ModuleInfo("acme.Later"))
        assert backup(tmp_path / "two", tmp_path / "one").revision == revision
    with Registry(tmp_path / "two") as copy:
        assert "acme.Later" in copy
    assert violations(tmp_path / "one") == violations(tmp_path / "two") == []


def test_the_files_are_as_a_writer_makes_them(busy: Path, tmp_path: Path) -> None:
    (busy / "data.mdb").chmod(0o640)
    backup(tmp_path / "copy", busy)
    modes = {name: (tmp_path / "copy" / name).stat().st_mode & 0o777 for name in FILES}
    assert modes["data.mdb"] == modes["revision"] == 0o640
    for name in ("lock.mdb", "revision"):
        made, live = (tmp_path / "copy" / name).stat(), (busy / name).stat()
        assert (made.st_size, made.st_blocks) == (live.st_size, live.st_blocks)
    assert modes["lock.mdb"] == (busy / "lock.mdb").stat().st_mode & 0o777


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o700), (0o007, 0o750)])
def test_others_may_not_enter_the_folder(busy: Path, tmp_path: Path, umask: int, mode: int) -> None:
    """A copy is not for more users than the registry."""
    before = os.umask(umask)
    try:
        backup(tmp_path / "new", busy)
        repair(tmp_path / "new", into=tmp_path / "repaired")
    finally:
        os.umask(before)
    for name in ("new", "repaired"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode
        assert (tmp_path / name / "data.mdb").stat().st_mode & 0o007 == 0


# Where it goes


def test_an_empty_folder_will_do_and_parents_are_made(busy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        backup(folder, busy)
        assert names(folder) == FILES


@pytest.mark.skipif(not can_record(), reason="strace cannot trace here")
def test_the_entry_of_each_new_folder_is_synced_before_data_mdb_is_put_there(busy: Path, tmp_path: Path) -> None:
    folder, log = tmp_path / "a" / "b" / "c", tmp_path / "log"
    command = [sys.executable, "-m", "dspy_registry.registry_store.backup", str(folder), str(busy)]
    subprocess.run(["strace", "-f", "-y", "-o", log, "-e", "trace=fsync,rename", *command], check=True)
    before, _, after = log.read_text().partition(f'{layout.DATA_FILE}", "{folder / layout.DATA_FILE}')
    assert after
    synced = set(re.findall(r"fsync\(\d+<(.*?)>", before))
    assert {str(path) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")} <= synced


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(busy: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    made = backup(tmp_path / "made", busy)
    for folder in (tmp_path / "full", tmp_path / "made", busy):
        before = names(folder)
        with pytest.raises(InvalidArgumentError, match=str(folder)):
            backup(folder, busy)
        assert names(folder) == before
    with pytest.raises(InvalidArgumentError, match=str(tmp_path / "file")):
        backup(tmp_path / "file", busy)
    with pytest.raises(StoreError, match=str(tmp_path / "file")):
        backup(tmp_path / "file" / "below", busy)
    assert (tmp_path / "file").read_text() == "mine"
    assert (tmp_path / "made" / "data.mdb").stat().st_size == made.bytes


def test_of_two_backups_into_one_folder_one_is_made(busy: Path, tmp_path: Path) -> None:
    def attempt(_: int) -> bool:
        try:
            backup(tmp_path / "copy", busy)
        except (InvalidArgumentError, StoreError):
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(attempt, range(4))) == 1
    assert names(tmp_path / "copy") == FILES
    assert violations(tmp_path / "copy") == []


def test_no_registry_no_backup(tmp_path: Path) -> None:
    (tmp_path / "unborn").mkdir()
    opening.create(tmp_path / "unborn")
    for source in (tmp_path / "none", tmp_path / "unborn"):
        with pytest.raises(RegistryNotFoundError):
            backup(tmp_path / "copy", source)
        assert not (tmp_path / "copy").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(busy: Path, tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    for folder in (tmp_path / "shut", tmp_path / "shut" / "below"):
        with pytest.raises(StorePermissionError, match=str(folder)):
            backup(folder, busy)
    assert names(tmp_path / "shut") == set()


# What goes wrong


def back_up_with_room(folder: str, limit: int) -> None:
    """The command, where a file may have `limit` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    main_in_child("backup", folder, "--json")


@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("room", each(2, ["nothing", "a page", "half", "just the data", "no lock file"]))
def test_a_full_disk_leaves_nothing(busy: Path, tmp_path: Path, room: str, is_new: bool) -> None:
    size = backup(tmp_path / "measured", busy).bytes
    limit = {"nothing": 0, "a page": 4096, "half": size // 2, "just the data": size, "no lock file": 260_000}[room]
    assert size < 260_000 < (tmp_path / "measured" / "lock.mdb").stat().st_size
    if not is_new:
        (tmp_path / "copy").mkdir()
    done = fork_server.run(__name__, "back_up_with_room", tmp_path / "copy", limit)
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "StoreError"
    assert str(tmp_path / "copy") in error["message"]
    assert error["remedy"]
    assert (tmp_path / "copy").exists() != is_new
    if not is_new:
        assert names(tmp_path / "copy") == set()
    backup(tmp_path / "copy", busy)


def back_up_and_die(path: str, folder: str, step: int) -> None:
    """Killed where the N-th file or folder is about to be synced: first within `.partial`, then on the way out."""
    sync = module.sync

    def die(path: Path) -> None:
        nonlocal step
        step -= 1
        if not step:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(path)

    module.sync = die
    backup(folder, path)


@pytest.mark.parametrize("step", each(3, range(1, 7)))
def test_a_killed_backup_does_not_look_like_one(busy: Path, tmp_path: Path, step: int) -> None:
    copy = tmp_path / "copy"
    with child(__name__, "back_up_and_die", busy, copy, step) as process:
        assert process.wait() == -signal.SIGKILL
    assert PARTIAL in names(copy)
    with pytest.raises(InvalidArgumentError, match=PARTIAL):
        backup(copy, busy)
    if step < 5:
        with pytest.raises(RegistryNotFoundError):
            Registry(copy)
    else:
        assert violations(copy) == []
        assert content(copy) == content(busy)


def test_a_damaged_record_is_copied_as_it_is(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(ModuleInfo("dspy.Predict"))
    damage(seeded_registry, layout.versioned_key("dspy.Predict", 1))
    backup(tmp_path / "copy", seeded_registry)
    assert violations(tmp_path / "copy") == violations(seeded_registry) != []


def test_a_backup_that_fails_in_the_end_leaves_nothing(
    busy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "put_in_place", interrupted)
    with pytest.raises(KeyboardInterrupt):
        backup(tmp_path / "copy", busy)
    assert not (tmp_path / "copy").exists()


# Beside a busy writer


def write_pairs(path: str) -> None:
    """Commits until told to stop; in each, both modules of the pair have the number of the commit."""
    with RegistryWriter(path) as writer:
        number = 0
        say("ready")
        for _ in requests():
            for _ in range(50):
                number += 1
                pair = [ModuleInfo(name, estimated_duration=number, examples=("x" * 3000,)) for name in ("a.A", "a.B")]
                writer.register_modules([*pair, ModuleInfo(f"a.N{number}", capabilities=("c",))])
            say(writer.revision)


def test_i4_a_backup_beside_a_busy_writer_is_one_revision(registry_folder: Path, tmp_path: Path) -> None:
    with child(__name__, "write_pairs", registry_folder) as writer:
        assert writer.hear() == "ready"
        newest = writer.ask()
        for number in range(8):
            copy = tmp_path / f"copy{number}"
            writer.tell()  # it commits while the copy is being made
            made = backup(copy, registry_folder)
            acknowledged, newest = newest, writer.hear()
            assert acknowledged <= made.revision <= newest
            assert violations(copy) == []
            with Registry(copy) as registry:
                assert registry.revision == made.revision
                durations = [registry[name].estimated_duration for name in ("a.A", "a.B")]
                assert durations == [made.revision - 1] * 2  # the first revision holds the core modules
                assert len(registry.find_by_capability("c")) == made.revision - 1 == made.modules - 8
        assert writer.close() == 0


def fork_beside_backups(path: str, folder: str) -> None:
    with ThreadPoolExecutor(1) as pool, Registry(path) as registry:
        made = [pool.submit(backup, Path(folder) / str(number), path) for number in range(10)]
        while not all(copy.done() for copy in made):
            assert "dspy.Predict" in registry
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
        say([copy.result().path for copy in made])


def test_i15_a_process_may_fork_during_a_backup(busy: Path, tmp_path: Path) -> None:
    """LMDB stays open under the copy; the child has no business with it."""
    with child(__name__, "fork_beside_backups", busy, tmp_path / "copies") as process:
        copies = process.hear()
        assert process.wait() == 0
    assert [violations(Path(copy)) for copy in copies] == [[]] * 10


# The command


def test_the_command_beside_a_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "served"
    monkeypatch.setenv("DSPY_REGISTRY", str(path))
    with daemon(path):
        answer("register", "--name", "acme.X")
        told = answer("backup", tmp_path / "one")
        assert (told["path"], told["revision"], told["modules"]) == (str(tmp_path / "one"), 2, 7)
        done = run("backup", tmp_path / "two")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{tmp_path / 'two'} holds revision 2: 7 modules, {told['bytes']:,} bytes\n"
        assert answer("check", "--path", tmp_path / "two")["violations"] == []
        assert answer("get", "acme.X", "--path", tmp_path / "two")["name"] == "acme.X"
        assert answer("register", "--name", "acme.Y")["revision"] == 3


def test_the_command_used_wrongly(busy: Path, tmp_path: Path) -> None:
    assert refusal("backup")[0] == 2
    status, error = refusal("backup", busy)
    assert (status, error["type"]) == (2, "InvalidArgumentError")
    status, error = refusal("backup", tmp_path / "copy", "--path", tmp_path / "none")
    assert (status, error["type"]) == (1, "RegistryNotFoundError")


def test_a_backup_of_a_relative_path(busy: Path, tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "backup", "copy"], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 0
    assert violations(tmp_path / "copy") == []
