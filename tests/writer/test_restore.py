"""Restoring as docs/daemon.md says, under a real daemon, beside readers that were open before."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, StoreError, WriterClient
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.writer.restore import restore
from tests.conftest import violations
from tests.support import ROOT
from tests.support.command import COMMAND, answer, daemon, refusal, run
from tests.support.processes import Process, child, requests, say
from tests.writer.test_full_disk import fill, small_disk

__all__ = ["small_disk"]

PAGE = ROOT / "docs" / "daemon.md"


def procedures(about: str = "/backups/monday") -> list[list[str]]:
    """The commands of each block of the page that stops the daemon and names this folder."""
    blocks = re.findall(r"^```console\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    chosen = [block for block in blocks if "systemctl stop" in block and about in block]
    return [re.findall(r"^\$ (.*)", block, re.MULTILINE) for block in chosen]


def carry_out(commands: list[str], registry: Path, copy: Path) -> None:
    for command in commands:
        if command.startswith("dspy-registry "):
            command = " ".join((*map(shlex.quote, COMMAND), command.removeprefix("dspy-registry ")))
        here = command.replace("/var/lib/dspy-registry", str(registry)).replace("/backups/monday", str(copy))
        subprocess.run(here, shell=True, check=True, timeout=60)


def update(writer: WriterClient | RegistryWriter, duration: int) -> int:
    return writer.register_module(ModuleInfo("acme.X", estimated_duration=duration))


def read(path: str) -> None:
    """Another process that reads; it says what it sees."""
    with Registry(path) as registry:
        for name in requests():
            if name is None:
                say([registry.registry_id.hex(), registry.revision])
            else:
                say(registry.get_module(name).estimated_duration if name in registry else None)


@pytest.fixture
def reader(registry_folder: Path) -> Iterator[Process]:
    """Holds lock.mdb open, so that LMDB believes what it says."""
    with RegistryWriter(registry_folder):
        pass
    with child(__name__, "read", registry_folder) as process:
        yield process


def test_the_page_has_all_procedures() -> None:
    assert len(procedures()) == 3


@pytest.mark.parametrize("procedure", procedures(), ids=["command", "data file", "folder"])
@pytest.mark.parametrize("further", [3, pytest.param(4, marks=pytest.mark.full)])
def test_i13_a_restored_backup_is_what_everybody_reads(
    registry_folder: Path, tmp_path: Path, procedure: list[str], further: int
) -> None:
    copy = tmp_path / "monday"
    stop, start = procedure.index("systemctl stop dspy-registry"), procedure.index("systemctl start dspy-registry")
    with WriterClient(registry_folder) as client:
        with daemon(registry_folder):
            kept = update(client, 7)
            assert answer("backup", copy, "--path", registry_folder)["revision"] == kept
            for duration in range(further):  # LMDB's two meta pages take turns
                update(client, 100 + duration)
            client.register_module(ModuleInfo("acme.Later"))
            registry = Registry(registry_folder)
            for _ in range(3):  # all of it is cached then
                assert registry["acme.X"].estimated_duration == 100 + further - 1
                assert "acme.Later" in registry
                assert registry.find_by_category("unknown") == ("acme.X", "acme.Later")
            before, seen = registry.registry_id, registry.revision
            lock = (registry_folder / "lock.mdb").stat().st_ino
            changes = registry.watch(since=seen, timeout=0)
            snapshot = registry.snapshot()
            carry_out(procedure[:stop], registry_folder, copy)
        carry_out(procedure[stop + 1 : start], registry_folder, copy)
        if (registry_folder / "lock.mdb").stat().st_ino == lock:  # the folder was not away
            assert registry.history("acme.X")[0].info.estimated_duration == 100 + further - 1
        with daemon(registry_folder):
            assert registry["acme.X"].estimated_duration == 7
            assert "acme.Later" not in registry
            assert registry.find_by_category("unknown") == ("acme.X",)
            assert registry.revision == kept < seen
            assert len({before, registry.registry_id, RevisionFile(copy).registry_id}) == 3
            assert [change.everything for change in changes] == [True]
            assert update(client, 8) == kept + 1
            assert registry["acme.X"].estimated_duration == 8
            assert snapshot["acme.X"].estimated_duration == 100 + further - 1
            assert snapshot.revision == seen
            assert answer("check", "--path", registry_folder)["violations"] == []
    snapshot.close()
    registry.close()
    assert violations(copy) == []


@pytest.mark.parametrize("further", range(2, 6))
def test_i13_data_put_in_place_under_readers_of_other_processes_is_not_lost(
    registry_folder: Path, tmp_path: Path, reader: Process, further: int
) -> None:
    """Their lock.mdb counts the transactions of the former data; whichever meta page that count points to."""
    with RegistryWriter(registry_folder) as writer:
        update(writer, 7)
    shutil.copy(registry_folder / "data.mdb", tmp_path / "copy")
    with RegistryWriter(registry_folder) as writer:
        for duration in range(further):
            update(writer, duration)
    assert reader.ask("acme.X") == further - 1
    (registry_folder / "data.mdb").rename(tmp_path / "former")
    (tmp_path / "copy").rename(registry_folder / "data.mdb")
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert registry["acme.X"].estimated_duration == reader.ask("acme.X") == 7
        assert update(writer, 8) == registry.revision == 3
        assert reader.ask("acme.X") == 8


def test_a_copied_folder_keeps_the_lock_file_that_its_readers_hold(registry_folder: Path, tmp_path: Path) -> None:
    """They read this very data: with another lock.mdb the writer would not see them."""
    with RegistryWriter(tmp_path / "other") as writer:
        update(writer, 7)
    shutil.copytree(tmp_path / "other", registry_folder)
    with child(__name__, "read", registry_folder) as reader:
        assert reader.ask("acme.X") == 7
        before = (registry_folder / layout.LOCK_FILE).stat().st_ino
        with RegistryWriter(registry_folder) as writer:
            assert (registry_folder / layout.LOCK_FILE).stat().st_ino == before
            update(writer, 8)
            assert reader.ask("acme.X") == 8


def test_i13_a_folder_in_place_without_the_former_revision_file(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, 7)
        backup(tmp_path / "copy", registry_folder)
        update(writer, 8)
    with Registry(registry_folder) as registry:
        assert registry["acme.X"].estimated_duration == 8
        registry_folder.rename(tmp_path / "former")
        (tmp_path / "copy").rename(registry_folder)
        with daemon(registry_folder):
            with registry.snapshot() as snapshot:
                assert snapshot["acme.X"].estimated_duration == 7
            assert registry["acme.X"].estimated_duration == 7


def test_i3_before_the_daemon_starts_a_backup_in_place_is_another_registry(
    registry_folder: Path, tmp_path: Path
) -> None:
    """A reader that looks in between must not take its revision for an earlier one of the former registry."""
    with RegistryWriter(registry_folder) as writer:
        update(writer, 7)
        backup(tmp_path / "copy", registry_folder)
        update(writer, 8)
    with Registry(registry_folder) as registry:
        ids = [registry.registry_id]
        registry_folder.rename(tmp_path / "former")
        (tmp_path / "copy").rename(registry_folder)
        registry.snapshot().close()
        ids.append(registry.registry_id)
        with RegistryWriter(registry_folder):
            assert registry["acme.X"].estimated_duration == 7
            registry.snapshot().close()
            ids.append(registry.registry_id)
    assert len(set(ids)) == 3


def test_a_bare_data_file_is_enough(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "other") as writer:
        update(writer, 7)
    backup(tmp_path / "copy", tmp_path / "other")
    registry_folder.mkdir()
    shutil.copy(tmp_path / "copy" / "data.mdb", registry_folder)
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert registry["acme.X"].estimated_duration == 7
        made, usual = ((folder / layout.LOCK_FILE).stat() for folder in (registry_folder, tmp_path / "other"))
        assert (made.st_size, made.st_blocks, made.st_mode) == (usual.st_size, usual.st_blocks, usual.st_mode)


def test_a_restored_registry_takes_in_requests_of_clients_that_went_on(registry_folder: Path, tmp_path: Path) -> None:
    """It remembers their older requests; a request from after the backup must not be taken for one of them."""
    with WriterClient(registry_folder) as client:
        with daemon(registry_folder):
            for duration in range(3):
                update(client, duration)
            backup(tmp_path / "copy", registry_folder)
            for duration in range(10, 13):
                update(client, duration)
        shutil.rmtree(registry_folder)
        shutil.copytree(tmp_path / "copy", registry_folder)
        with daemon(registry_folder), Registry(registry_folder) as registry:
            assert registry["acme.X"].estimated_duration == 2
            update(client, 12)
            assert registry["acme.X"].estimated_duration == 12


# The command


def test_restore_asks_and_refuses_and_changes_nothing(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, 7)
        backup(tmp_path / "copy", registry_folder)
        update(writer, 8)
        status, error = refusal("restore", tmp_path / "copy", "--path", registry_folder, "--yes")
        assert (status, error["type"]) == (1, "WriterLockedError")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "data.mdb").write_bytes((tmp_path / "copy" / "data.mdb").read_bytes()[:20_000])
    (tmp_path / "empty").mkdir()
    for source in ("cut", "empty"):
        assert refusal("restore", tmp_path / source, "--path", registry_folder, "--yes")[0] == 1
    assert refusal("restore", registry_folder, "--path", registry_folder, "--yes")[1]["type"] == "InvalidArgumentError"
    declined = run("restore", tmp_path / "copy", "--path", registry_folder, stdin="n\n")
    assert (declined.returncode, declined.stdout) == (1, "")
    assert "the answer was no, so nothing was changed." in declined.stderr
    status, error = refusal("restore", tmp_path / "empty", "--path", registry_folder, "--yes")
    assert error["message"] == f"{tmp_path / 'empty'} is no backup: it has no data.mdb."
    assert error["remedy"] == "Name a folder that `dspy-registry backup` made."
    with Registry(registry_folder) as registry:
        assert registry["acme.X"].estimated_duration == 8
    assert not (registry_folder / ".restoring").exists()
    accepted = run("restore", tmp_path / "copy", "--path", registry_folder, stdin="y\n")
    assert (accepted.returncode, accepted.stdout.count("revision 2")) == (0, 1)
    with Registry(registry_folder) as registry:
        assert registry["acme.X"].estimated_duration == 7


def test_restore_makes_a_registry_where_there_is_none(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "other") as writer:
        update(writer, 7)
    backup(tmp_path / "copy", tmp_path / "other")
    done = answer("restore", tmp_path / "copy", "--path", registry_folder, "--yes")
    assert done == {"path": str(registry_folder), "revision": 2, "modules": 7}
    with Registry(registry_folder) as registry:
        assert registry["acme.X"].estimated_duration == 7


def test_a_disk_that_is_full_leaves_the_registry_as_it_was(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, 7)
        backup(tmp_path / "copy", registry_folder)
        update(writer, 8)
    limited = " ".join(["ulimit -f 40;", *map(shlex.quote, COMMAND), '"$@"'])
    arguments = ["restore", str(tmp_path / "copy"), "--path", str(registry_folder), "--yes"]
    done = subprocess.run(["bash", "-c", limited, "bash", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert str(registry_folder) in done.stderr
    assert not (registry_folder / ".restoring").exists()
    with Registry(registry_folder) as registry:
        assert registry["acme.X"].estimated_duration == 8


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_root_restores_for_the_owner_of_the_folder(registry_folder: Path, tmp_path: Path) -> None:
    registry_folder.mkdir()
    os.chown(registry_folder, 12345, 12345)
    with RegistryWriter(tmp_path / "other") as writer:
        update(writer, 7)
    backup(tmp_path / "copy", tmp_path / "other")
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        parent.chmod(0o755)
    for _ in range(2):
        assert answer("restore", tmp_path / "copy", "--path", registry_folder, "--yes")["modules"] == 7
        owners = {entry.name: (entry.stat().st_uid, entry.stat().st_gid) for entry in registry_folder.iterdir()}
        assert set(owners.values()) == {(12345, 12345)}, owners


def test_a_lease_that_cannot_be_written_is_told_as_an_error_of_the_disk(
    seeded_registry: Path, tmp_path: Path, small_disk: Path
) -> None:
    made = backup(tmp_path / "backup", seeded_registry)
    folder = small_disk / "registry"
    folder.mkdir()
    fill(small_disk, 0)
    with pytest.raises(StoreError) as caught:
        restore(Path(made.path), folder)
    assert str(folder) in caught.value.message
    assert caught.value.remedy


def test_restore_asks_only_for_what_it_can_do(registry_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with RegistryWriter(registry_folder) as writer:
        update(writer, 7)
        backup(tmp_path / "copy", registry_folder)
        refused = run("restore", tmp_path / "copy", "--path", registry_folder)
        assert (refused.returncode, "Replace" in refused.stderr) == (1, False)
        assert f"process {os.getpid()}" in refused.stderr
        assert "Stop that writer" in refused.stderr
    refused = run("restore", tmp_path / "empty", "--path", registry_folder)
    assert (refused.returncode, "Replace" in refused.stderr) == (1, False)
    assert "is no backup" in refused.stderr


def test_restore_that_nobody_answers_names_the_option(registry_folder: Path, tmp_path: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, 7)
        backup(tmp_path / "copy", registry_folder)
    unanswered = run("restore", tmp_path / "copy", "--path", registry_folder)
    assert unanswered.returncode == 1
    assert "nobody answered, so nothing was changed.\nWithout a terminal, give --yes.\n" in unanswered.stderr
