"""A writer commits only while it is the writer (I22), and what the word knows to be missing is told (I23)."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, StoreError, WriterLockedError
from dspy_registry.registry_store.layout import DATA_FILE, LOCK_FILE, WRITER_LOCK_FILE
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.writer import failpoints, writer_lock
from tests.conftest import violations
from tests.support.command import run
from tests.support.processes import child
from tests.writer.test_crash import open_and_wait

NAME = "a.B"


def update(writer: RegistryWriter, duration: int) -> int:
    return writer.register_module(ModuleInfo(NAME, estimated_duration=duration))


def stops(writer: RegistryWriter, file: str) -> None:
    """It names the file, and does not try again, whatever the folder looks like later."""
    for _ in range(2):
        with pytest.raises(StoreError, match=file):
            update(writer, 99)


@pytest.mark.parametrize("moves", [False, True], ids=["deleted", "moved away"])
def test_i22_a_writer_whose_lease_file_is_gone_stops_before_a_second_one_commits(
    registry_folder: Path, tmp_path: Path, moves: bool
) -> None:
    with RegistryWriter(registry_folder) as first, Registry(registry_folder) as registry:
        update(first, 1)
        if moves:
            (registry_folder / WRITER_LOCK_FILE).rename(tmp_path / "elsewhere")
        else:
            (registry_folder / WRITER_LOCK_FILE).unlink()
        with child(open_and_wait.__module__, "open_and_wait", registry_folder) as second:
            assert second.hear() == first.revision
            for duration in (2, 3):
                revision = second.ask(duration)
                assert registry.get_module(NAME).estimated_duration == duration
                stops(first, WRITER_LOCK_FILE)
                assert (registry.revision, second.ask(duration)) == (revision, revision)
            assert second.close() == 0


@pytest.mark.parametrize("how", ["deleted", "moved away", "moved away and linked", "replaced"])
@pytest.mark.parametrize("is_first", [True, False], ids=["in the first commit", "later"])
def test_i22_a_lease_lost_during_a_commit_is_seen_before_it_is_acknowledged(
    registry_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, is_first: bool
) -> None:
    """The second writer has retired the revision file, and the first has stored its word over that."""
    path, elsewhere = registry_folder / WRITER_LOCK_FILE, tmp_path / "elsewhere"

    def lose(draft: object) -> None:
        draft.register(ModuleInfo(NAME))  # type: ignore[attr-defined]
        if how == "deleted":
            path.unlink()
        elif how == "replaced":
            elsewhere.touch()
            elsewhere.rename(path)
        else:
            path.rename(elsewhere)
        if how == "moved away and linked":
            (tmp_path / "link").hardlink_to(elsewhere)

    with RegistryWriter(registry_folder) as writer:
        file = RevisionFile(registry_folder)
        if not is_first:
            monkeypatch.setattr(writer_lock, "_TICK", 0)
            time.sleep(0.02)  # longer than a tick of an old kernel's clock
            for duration in (1, 2):  # from then on it looks at the path once a second
                update(writer, duration)
        with pytest.raises(StoreError, match=WRITER_LOCK_FILE):
            writer.store.committer.commit(lose)
        assert file.word[()] != file.word[()]
        stops(writer, WRITER_LOCK_FILE)
    path.unlink(missing_ok=True)
    with RegistryWriter(registry_folder) as writer:
        assert update(writer, 1) == writer.revision


def test_i22_what_is_done_to_the_lock_file_in_its_place_stops_nobody(
    registry_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_lock, "_TICK", 0)
    path = registry_folder / WRITER_LOCK_FILE
    with RegistryWriter(registry_folder) as writer:
        update(writer, 1)
        path.chmod(0o640)
        update(writer, 2)
        (tmp_path / "link").hardlink_to(path)
        update(writer, 3)
        path.unlink()
        stops(writer, WRITER_LOCK_FILE)


def test_i22_the_writer_of_a_folder_that_was_moved_stops_within_a_second(
    registry_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, 1)
        time.sleep(0.02)
        update(writer, 2)
        registry_folder.rename(tmp_path / "moved")
        with pytest.raises(WriterLockedError):
            RegistryWriter(tmp_path / "moved")
        with RegistryWriter(registry_folder) as other:  # another registry
            update(other, 3)
            monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
            stops(writer, WRITER_LOCK_FILE)
            monkeypatch.undo()
            update(other, 4)


def test_i22_a_retired_revision_file_stops_the_writer(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        RevisionFile(registry_folder, writable=True).retire()
        stops(writer, "revision")


def test_i22_an_overwritten_lock_file_stops_the_writer_before_it_acknowledges(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        revision = update(writer, 1)
        with (registry_folder / LOCK_FILE).open("r+b") as file:
            file.write(bytes(os.fstat(file.fileno()).st_size))
        stops(writer, LOCK_FILE)
    (registry_folder / LOCK_FILE).unlink()
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        assert (registry.revision, registry.get_module(NAME).estimated_duration) == (revision, 1)
        assert update(writer, 2) == revision + 1


# The word is evidence


def lose_the_last_commit(folder: Path) -> None:
    """One bit of the newest meta page's transaction number is flipped: LMDB takes the page before it."""
    at, number = 144, struct.Struct("=Q")
    with (folder / DATA_FILE).open("r+b") as file:
        numbers = []
        for page in (0, 4096):
            file.seek(page + at)
            numbers.append(number.unpack(file.read(8))[0])
        newest = max(numbers)
        file.seek(numbers.index(newest) * 4096 + at)
        file.write(number.pack(newest ^ (1 << newest.bit_length() - 1)))


def test_i23_an_acknowledged_commit_that_is_missing_is_told_by_all(
    registry_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with RegistryWriter(registry_folder) as writer:
        update(writer, 1)
        revision = update(writer, 2)
    lose_the_last_commit(registry_folder)
    before = RevisionFile(registry_folder).registry_id
    assert len(violations(registry_folder)) == 1
    for command in ("status", "check"):
        done = run(command, "--path", registry_folder)
        assert done.returncode == 1
        assert f"revision {revision} was committed" in done.stdout
    for _ in range(2):
        with Registry(registry_folder) as registry:
            assert registry.get_module(NAME).estimated_duration == 1
    told = [record for record in caplog.records if f"revision {revision} was committed" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.ERROR]
    caplog.clear()
    with RegistryWriter(registry_folder) as writer:
        assert f"revision {revision} was committed" in caplog.text
        assert RevisionFile(registry_folder).registry_id != before
        assert update(writer, 3) == revision


def test_i23_a_missing_commit_of_a_copied_registry_is_told_by_its_writer(
    registry_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The revision file names the data file of the original. Its word is evidence of the copy all the same."""
    with RegistryWriter(registry_folder) as writer:
        update(writer, 1)
        revision = update(writer, 2)
    copy = tmp_path / "copy"
    shutil.copytree(registry_folder, copy)
    lose_the_last_commit(copy)
    with RegistryWriter(copy) as writer:
        told = [record for record in caplog.records if f"revision {revision} was committed" in record.getMessage()]
        assert [record.levelno for record in told] == [logging.ERROR]
        assert str(copy) in told[0].getMessage()
        assert update(writer, 3) == revision


# A commit that fails


def test_i11_a_reader_in_the_writers_process_goes_on_after_a_failed_meta_write(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder, cache_size=0) as registry:
        update(writer, 1)
        descriptor = synced_descriptor(registry_folder)
        kept = os.dup(descriptor)
        with Path("/dev/full").open("wb") as full:
            os.dup2(full.fileno(), descriptor)
        with pytest.raises(StoreError):
            update(writer, 2)
        for _ in range(3):
            assert registry.get_module(NAME).estimated_duration == 1
            assert len(registry) == 7
        os.close(kept)
        update(writer, 3)
        assert registry.get_module(NAME).estimated_duration == 3


def synced_descriptor(folder: Path) -> int:
    """The one through which LMDB writes its meta pages."""
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            is_data = entry.readlink() == folder / DATA_FILE
            if is_data and fcntl.fcntl(int(entry.name), fcntl.F_GETFL) & os.O_DSYNC:
                return int(entry.name)
    raise AssertionError("LMDB has no such descriptor")


def test_i22_a_file_that_was_retired_during_a_commit_stays_so(
    registry_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing tells that the lock was moved: a second writer has begun, and readers go by its file."""
    with RegistryWriter(registry_folder) as writer:
        other = RevisionFile(registry_folder, writable=True)
        monkeypatch.setattr(failpoints, "reach", lambda name: other.retire() if name == "before_commit" else None)
        with pytest.raises(StoreError, match="retired"):
            update(writer, 1)
        monkeypatch.undo()
        assert other.word[()] != other.word[()]
        with pytest.raises(StoreError, match="retired"):
            update(writer, 2)
