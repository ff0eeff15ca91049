"""Who is blamed for a lock, what a killed writer leaves, and what is synced before it is relied on."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from dspy_registry import RegistryWriter, WriterLockedError
from dspy_registry.registry_store.layout import DATA_FILE, REVISION_FILE, WRITER_LOCK_FILE
from dspy_registry.writer.lock_holder import holders_in
from dspy_registry.writer.writer_lock import lock_holder
from tests.support.processes import child, requests, say

TABLE = """\
1: POSIX  ADVISORY  WRITE 11 fe:00:77 0 EOF
2: FLOCK  ADVISORY  WRITE 12 fe:00:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 13 fe:00:77 0 EOF
3: FLOCK  ADVISORY  READ 14 fe:00:77 0 EOF
4: FLOCK  ADVISORY  WRITE 15 00:1b:77 0 EOF
5: FLOCK  ADVISORY  WRITE 16 fe:00:78 0 EOF
6: FLOCK  ADVISORY  WRITE 0 fe:00:79 0 EOF
7: OFDLCK ADVISORY  WRITE -1 fe:00:77 0 EOF
"""


@pytest.mark.parametrize(
    ("device", "inode", "pids"),
    [
        (os.makedev(0xFE, 0), 77, {12}),
        (os.makedev(0, 0x1B), 77, {15}),
        (os.makedev(9, 9), 77, {12, 15}),  # a file system that shows another device
        (os.makedev(9, 9), 78, {16}),
        (os.makedev(0xFE, 0), 79, set()),  # of another PID namespace
        (os.makedev(0xFE, 0), 80, set()),
    ],
)
def test_the_holders_of_a_lock_are_found_in_the_kernels_table(device: int, inode: int, pids: set[int]) -> None:
    assert holders_in(TABLE, device, inode) == pids


def lock(folder: str) -> None:
    file = os.open(f"{folder}/{WRITER_LOCK_FILE}", os.O_RDWR)
    fcntl.flock(file, fcntl.LOCK_EX)
    say("locked")
    for _ in requests():
        pass


def test_i12_the_holder_is_named_and_not_the_dead_process_that_the_file_names(registry_folder: Path) -> None:
    RegistryWriter(registry_folder).close()
    with child(__name__, "lock", registry_folder) as holder:
        assert holder.hear() == "locked"
        for written in (b"999999999", b"1", b"", b"no number"):
            (registry_folder / WRITER_LOCK_FILE).write_bytes(written)
            assert lock_holder(registry_folder) == holder.pid
            with pytest.raises(WriterLockedError) as caught:
                RegistryWriter(registry_folder)
            assert caught.value.pid == holder.pid
    assert lock_holder(registry_folder) is None


def test_i23_what_killed_writers_left_is_removed_by_the_next_one(registry_folder: Path) -> None:
    RegistryWriter(registry_folder).close()
    left = [".revision.4711", ".lock.mdb.4711", ".health.4711", ".restoring", ".leases.4711.1"]
    kept = [".leases.4712.1", ".revision.mine", ".other", "revision.4711"]
    for name in (*left, *kept):
        (registry_folder / name).touch()
    os.utime(registry_folder / ".leases.4711.1", (0, 0))
    RegistryWriter(registry_folder).close()
    present = {path.name for path in registry_folder.iterdir()}
    assert present.isdisjoint(left)
    assert present >= set(kept)


def test_i23_folders_are_synced_before_the_revision_file_says_that_the_registry_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, synced, sync = tmp_path / "a" / "registry", [], os.fsync

    def watched(descriptor: int) -> None:
        sync(descriptor)
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path, (folder / DATA_FILE).exists(), (folder / REVISION_FILE).exists()))

    monkeypatch.setattr(os, "fsync", watched)
    RegistryWriter(folder).close()
    assert (tmp_path, False, False) in synced
    assert (folder.parent, False, False) in synced
    assert (folder, True, False) in synced
    assert synced[-1] == (folder, True, True)
