"""A disk that is full or may not be written: every error says so, with the folder and what mends it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, StoreError, StorePermissionError
from dspy_registry.registry_store import disk
from dspy_registry.registry_store.remedies import FREE_SPACE
from tests.conftest import violations
from tests.support.command import run_process

KIB = 1024


def mount(*arguments: str) -> bool:
    return os.geteuid() == 0 and subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)):
        pytest.skip("only root can mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path, room: int) -> Path:
    """Leave so many bytes free."""
    ballast = place / "ballast"
    found = os.statvfs(place)
    with ballast.open("wb") as file:
        file.write(bytes(found.f_bavail * found.f_frsize - room))
    return ballast


@pytest.mark.parametrize("room", [0, 4, 64, 256, 264, 272, 288, 304, 336, 352, 368])
def test_a_registry_that_does_not_fit_says_so_and_is_made_when_there_is_room(small_disk: Path, room: int) -> None:
    folder = small_disk / "registry"
    ballast = fill(small_disk, room * KIB)
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            RegistryWriter(folder)
        assert str(folder) in caught.value.message
        assert caught.value.remedy == FREE_SPACE
    ballast.unlink()
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        writer.register_module(ModuleInfo("acme.A"))
        assert len(registry) == 7
    assert violations(folder) == []
    lock = (folder / "lock.mdb").stat()
    assert lock.st_blocks * 512 >= lock.st_size  # no hole, which would be a SIGBUS


def test_a_commit_for_which_there_is_no_room_says_so(small_disk: Path) -> None:
    folder = small_disk / "registry"
    infos = [ModuleInfo(f"acme.M{number}", metadata={"text": "x" * 60_000}) for number in range(100)]
    with RegistryWriter(folder) as writer:
        with pytest.raises(StoreError) as caught:
            list(map(writer.register_module, infos))
        assert str(folder) in caught.value.message
        assert caught.value.remedy == FREE_SPACE
    assert violations(folder) == []


def test_serve_on_a_full_disk_ends_with_what_is_wrong_and_what_mends_it(small_disk: Path) -> None:
    fill(small_disk, 0)
    done = run_process("serve", "--path", small_disk / "registry")
    assert done.returncode == 1
    assert str(small_disk / "registry") in done.stderr
    assert FREE_SPACE in done.stderr
    assert "Errno" not in done.stderr


@pytest.mark.parametrize("is_there", [False, True])
def test_a_read_only_disk_is_named(small_disk: Path, is_there: bool) -> None:
    folder = small_disk / "registry"
    if is_there:
        RegistryWriter(folder).close()
    if not mount("-o", "remount,ro", str(small_disk)):
        pytest.skip("this file system cannot be remounted")
    with pytest.raises(StorePermissionError) as caught:
        RegistryWriter(folder)
    assert str(folder) in caught.value.message
    assert caught.value.remedy


def test_an_error_of_input_and_output_is_a_full_disk_only_where_there_is_no_room(tmp_path: Path) -> None:
    assert not disk.is_full(tmp_path)
    assert not disk.is_full(tmp_path / "none")
