"""Who may open a registry's files: its user, and a group that is admitted. Whoever may read a lock file may lock it."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import Registry, RegistryError, RegistryWriter, StoreError, WriterClient
from dspy_registry.registry_store.layout import DATA_FILE, LOCK_FILE, WRITER_LOCK_FILE
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.support.daemon_process import daemon_of, module, serve
from tests.support.processes import child, requests, run, say

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
STRANGER, GROUP = 54321, 54322


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach, for a registry that is not there yet."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    yield parent / "registry"
    shutil.rmtree(parent)


def become_stranger(groups: list[int]) -> None:
    os.setgroups(groups)
    os.setgid(STRANGER)
    os.setuid(STRANGER)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Locks


def lock_what_can_be_locked(folder: str) -> None:
    """As any user of the host may do, who only has to read a file for it."""
    become_stranger([])
    locked = []
    for name, lock in ((WRITER_LOCK_FILE, fcntl.flock), (LOCK_FILE, fcntl.lockf)):
        try:
            file = os.open(f"{folder}/{name}", os.O_RDONLY)
            lock(file, fcntl.LOCK_SH)
        except PermissionError:
            continue
        locked.append(name)
    say(locked)
    for _ in requests():
        pass


@needs_root
@pytest.mark.parametrize("is_made_before", [True, False])
def test_another_user_cannot_keep_a_registry_from_opening(reachable: Path, is_made_before: bool) -> None:
    """Nor where the folder is one that all may look into."""
    if is_made_before:
        reachable.mkdir(mode=0o755)
    RegistryWriter(reachable).close()
    with child(__name__, "lock_what_can_be_locked", reachable) as stranger:
        assert stranger.hear() == []
        with RegistryWriter(reachable) as writer, Registry(reachable) as registry:
            assert writer.register_module(module("a.M")) == registry.revision


def hold_lock(folder: str) -> None:
    file = os.open(f"{folder}/{LOCK_FILE}", os.O_RDONLY)
    fcntl.lockf(file, fcntl.LOCK_SH)
    say("held")
    for _ in requests():
        pass


def test_a_lock_of_another_process_is_named_as_what_it_may_be(registry_folder: Path) -> None:
    RegistryWriter(registry_folder).close()
    with child(__name__, "hold_lock", registry_folder) as holder:
        assert holder.hear() == "held"
        for opening in (lambda: Registry(registry_folder), lambda: RegistryWriter(registry_folder)):
            with pytest.raises(StoreError, match=LOCK_FILE):
                opening()
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert len(registry) == 6


# Modes


def make(folder: str, umask: int) -> None:
    os.umask(umask)
    RegistryWriter(folder).close()
    path = Path(folder)
    say([mode(path), mode(path / WRITER_LOCK_FILE), mode(path / LOCK_FILE), mode(path / DATA_FILE)])
    assert os.umask(0) == umask


@pytest.mark.parametrize(
    ("umask", "modes"),
    [
        (0o022, [0o700, 0o600, 0o600, 0o600]),
        (0o077, [0o700, 0o600, 0o600, 0o600]),
        (0o027, [0o700, 0o600, 0o600, 0o600]),
        (0o007, [0o750, 0o640, 0o660, 0o640]),
        (0o002, [0o750, 0o640, 0o660, 0o640]),
        (0o000, [0o750, 0o640, 0o660, 0o640]),
    ],
)
def test_what_is_made_is_for_its_user_and_for_the_group_that_the_umask_admits(
    tmp_path: Path, umask: int, modes: list[int]
) -> None:
    assert run(__name__, "make", tmp_path / "registry", umask) == [modes]


def test_what_is_there_keeps_its_mode(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    folder.chmod(0o2775)
    RegistryWriter(folder).close()
    (folder / WRITER_LOCK_FILE).chmod(0o660)
    (folder / LOCK_FILE).chmod(0o666)
    RegistryWriter(folder).close()
    assert [mode(folder), mode(folder / WRITER_LOCK_FILE), mode(folder / LOCK_FILE)] == [0o2775, 0o660, 0o666]


def test_a_lock_file_that_a_backup_lacks_is_made_as_a_new_one(registry_folder: Path) -> None:
    RegistryWriter(registry_folder).close()
    before = (registry_folder / LOCK_FILE).stat()
    (registry_folder / LOCK_FILE).unlink()
    RegistryWriter(registry_folder).close()
    after = (registry_folder / LOCK_FILE).stat()
    assert (after.st_mode, after.st_size) == (before.st_mode, before.st_size)
    assert after.st_blocks * 512 >= after.st_size  # no hole that a reader could fall into when the disk is full


# A group


def serve_group(path: str) -> None:
    os.umask(0o077)
    serve(path, group=GROUP)


def read_and_change(path: str, groups: list[int]) -> None:
    become_stranger(groups)
    try:
        with Registry(path) as registry, registry.snapshot() as snapshot, WriterClient(path) as client:
            revision = client.register_module(module("acme.Stranger"))
            say([len(snapshot), registry.revision == revision])
    except RegistryError as error:
        say(isinstance(error, PermissionError))


@needs_root
def test_who_is_of_the_group_reads_and_changes_and_nobody_else(reachable: Path) -> None:
    with daemon_of(__name__, "serve_group", reachable):
        assert run(__name__, "read_and_change", reachable, [1]) == [True]
        assert run(__name__, "read_and_change", reachable, [1, GROUP]) == [[6, True]]
        assert [mode(reachable / name) for name in (".", WRITER_LOCK_FILE, LOCK_FILE)] == [0o750, 0o640, 0o660]


def serve_a_group_of_others(path: str) -> None:
    become_stranger([])
    try:
        Daemon(path, group=GROUP).run()
    except RegistryError as error:
        say([type(error).__name__, str(error)])


@needs_root
def test_a_group_that_one_cannot_give_is_refused_and_leaves_nothing(reachable: Path) -> None:
    reachable.parent.chmod(0o777)
    ((kind, message),) = run(__name__, "serve_a_group_of_others", reachable)
    assert kind == "StorePermissionError"
    assert str(GROUP) in message
    assert not reachable.exists()
