"""The writer's lease: an flock on a file of our own, so that at most one writer has a registry.

Never on lock.mdb: opening and closing that file anywhere in a process drops the locks LMDB holds on it. The lease
ends with the process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from registry_store import access
from registry_store.errors import StorePermissionError, WriterLockedError
from registry_store.layout import LEASE_FILE


class Lease:
    """Held from construction until `release`. Raises WriterLockedError naming the holder's pid.

    `group` is one that may look at its file, should that have to be created.
    """

    def __init__(self, folder: Path, group: int | None = None) -> None:
        self.path = folder / LEASE_FILE
        try:
            self._file = _open(self.path, group)
        except PermissionError as error:
            raise StorePermissionError(
                f"{self.path} cannot be written.", remedy="Run the writer as the registry's owner."
            ) from error
        if not _locked(self._file):
            holder = _pid(os.pread(self._file, 32, 0))
            os.close(self._file)
            raise WriterLockedError(str(folder), holder)
        os.truncate(self._file, 0)
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Give the lease up. The file stays: unlinking it would let two writers lock two files."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def disown(self) -> None:
        """In a forked child: the lock belongs to the parent, and must end with the parent."""
        with contextlib.suppress(OSError):
            self.release()


def _open(path: Path, group: int | None) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    with contextlib.suppress(FileExistsError):  # another writer was quicker
        os.close(os.open(path, flags | os.O_CREAT | os.O_EXCL, access.mode_for_umask(access.LEASE)))
        access.admit(path, group, access.LEASE)
    return os.open(path, flags)


def _locked(file: int) -> bool:
    """Several tries: `lease_holder` takes the lock for a moment to see whether it is free."""
    for pause in (0.01, 0.02, 0.04, 0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        else:
            return True
    return False


def _pid(content: bytes) -> int | None:
    return int(content) if content.isdigit() else None


def lease_holder(folder: Path) -> int | None:
    """The pid of the registry's writer; None when there is none (0: it cannot be known)."""
    try:
        file = os.open(folder / LEASE_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(os.pread(file, 32, 0)) or 0
    finally:
        os.close(file)
    return None
