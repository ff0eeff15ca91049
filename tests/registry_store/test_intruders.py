"""Folders in which others can put files: no link is followed, and a writer keeps out of those that are not its own."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import Registry, RegistryError, RegistryWriter, StoreError, StorePermissionError
from dspy_registry.registry_store import access, own_files
from dspy_registry.registry_store.health_file import HEALTH_FILE, HealthFile
from dspy_registry.registry_store.layout import DATA_FILE, LOCK_FILE, REVISION_FILE, WRITER_LOCK_FILE
from dspy_registry.registry_store.lease_file import LEASES_FILE
from dspy_registry.registry_store.lease_replacing import open_lease_file
from dspy_registry.registry_store.opening import create_lock_file
from dspy_registry.registry_store.revision import create_revision_file
from tests.support.processes import run, say

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
STRANGER = 54321
WRITERS = (DATA_FILE, LOCK_FILE, REVISION_FILE, WRITER_LOCK_FILE)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.write_bytes(b"somebody else's")
    return path


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("is_new", [True, False])
def test_i23_no_link_in_the_folder_is_followed(tmp_path: Path, target: Path, name: str, is_new: bool) -> None:
    folder = tmp_path / "registry"
    if is_new:
        folder.mkdir()
    else:
        RegistryWriter(folder).close()
        (folder / name).unlink()
    (folder / name).symlink_to(target)
    with pytest.raises(StoreError, match=name) as caught:
        RegistryWriter(folder)
    assert caught.value.remedy
    if not is_new and name != WRITER_LOCK_FILE:
        with pytest.raises(StoreError, match=name):
            Registry(folder)
    assert target.read_bytes() == b"somebody else's"
    assert (folder / name).is_symlink()


@pytest.mark.parametrize("name", WRITERS)
def test_i23_what_is_no_regular_file_is_named_and_nobody_waits_for_it(tmp_path: Path, name: str) -> None:
    RegistryWriter(tmp_path).close()
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    for opening in (RegistryWriter, Registry) if name != WRITER_LOCK_FILE else (RegistryWriter,):
        with pytest.raises(StoreError, match=name):
            opening(tmp_path)


def test_i23_files_beside_the_store_are_no_links_either(registry_folder: Path, target: Path) -> None:
    RegistryWriter(registry_folder).close()
    for name, opening in ((HEALTH_FILE, HealthFile), (LEASES_FILE, open_lease_file)):
        (registry_folder / name).symlink_to(target)
        with pytest.raises(StoreError, match=name):
            opening(registry_folder)
        (registry_folder / name).unlink()
    assert target.read_bytes() == b"somebody else's"


def test_i23_a_planted_temporary_is_replaced_and_not_written_through(registry_folder: Path, target: Path) -> None:
    RegistryWriter(registry_folder).close()
    for name in (REVISION_FILE, LOCK_FILE):
        (registry_folder / f".{name}.{os.getpid()}").symlink_to(target)
    create_lock_file(registry_folder)
    create_revision_file(registry_folder, bytes(16), 1, 0o644)
    assert target.read_bytes() == b"somebody else's"
    assert not (registry_folder / REVISION_FILE).is_symlink()
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry:
        assert len(registry) == 6


def test_i23_a_group_is_given_the_file_and_not_what_a_link_leads_to(tmp_path: Path, target: Path) -> None:
    target.chmod(0o600)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(StoreError, match="link"):
        access.admit(tmp_path / "link", os.getegid(), 0o666)
    assert target.stat().st_mode & 0o777 == 0o600
    access.admit(target, os.getegid(), 0o640)
    assert target.stat().st_mode & 0o777 == 0o640
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        own_files.change_owner_and_mode(tmp_path / "socket", os.getegid(), 0o660)
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o660


def test_the_folder_itself_may_be_named_by_a_link(registry_folder: Path, tmp_path: Path) -> None:
    RegistryWriter(registry_folder).close()
    (tmp_path / "link").symlink_to(registry_folder)
    with RegistryWriter(tmp_path / "link") as writer, Registry(registry_folder) as registry:
        assert registry.revision == writer.revision


# Whose folder it is


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o757])
def test_i23_a_folder_that_everybody_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    with pytest.raises(StorePermissionError, match=str(tmp_path)) as caught:
        RegistryWriter(tmp_path)
    assert caught.value.remedy
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can reach."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def write_as(folder: str, user: int) -> None:
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    try:
        RegistryWriter(folder).close()
        say("written")
    except RegistryError as error:
        say(type(error).__name__)


@needs_root
@pytest.mark.parametrize(
    ("owner", "user", "said"),
    [
        (STRANGER, 0, "StorePermissionError"),
        (STRANGER, STRANGER + 1, "StorePermissionError"),
        (STRANGER, STRANGER, "written"),
        (0, STRANGER, "written"),
    ],
)
def test_i23_a_writer_keeps_out_of_another_users_folder(reachable: Path, owner: int, user: int, said: str) -> None:
    """But root's: a service's folder may be made by root for the group of the service."""
    folder = reachable / "registry"
    folder.mkdir()
    os.chown(folder, owner, user)
    folder.chmod(0o770)
    assert run(__name__, "write_as", folder, user) == [said]
