"""The writer lock: an flock on a separate file, so that a registry has at most one writer.

It is not on lock.mdb: opening and closing that file anywhere in a process drops the locks that LMDB has on it. The
lock ends with the process, however the process ends, or when the last reference to it is gone. A forked child shares
the open file and would keep the lock after the parent's death. So the child closes the file it inherited.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from pathlib import Path
from typing import Final

from dspy_registry.registry_store import access
from dspy_registry.registry_store.errors import StorePermissionError, WriterLockedError
from dspy_registry.registry_store.layout import WRITER_LOCK_FILE
from dspy_registry.registry_store.own_files import open_file
from dspy_registry.writer.lock_holder import holder_of

_SECOND: Final = 10**9  # in nanoseconds
_TICK, _LONG_TICK = 50 * 10**6, 3 * _SECOND
"""Changes of a file that are further apart have different change times: the kernel's clock for them moves every 1 to 10
ms. Some file systems keep whole seconds only."""
_LOOK_SECONDS: Final = 1.0


class WriterLock:
    """Held from construction until `release`, or until it is collected. Raises WriterLockedError naming the holder.

    `group` is a Unix group that may read writer.lock when it is created here. Construct it where no fork can happen.
    """

    def __init__(self, folder: Path, group: int | None = None) -> None:
        self.path = folder / WRITER_LOCK_FILE
        file = _open(self.path, group)
        self._place = str(self.path)
        self._mark: tuple[int, int] | None = None  # of the file when it was last seen in place
        self._look_at = 0.0
        self._descriptor = _Descriptor(file)
        status = os.fstat(file)
        self._identity = (status.st_dev, status.st_ino)
        # Runs once, in any thread and under any lock, and takes no lock. Not at exit, when threads may still write.
        self._finalizer = weakref.finalize(self, self._descriptor.close)
        self._finalizer.atexit = False
        if not _locked(file):
            holder = holder_of(file)
            self.release()
            raise WriterLockedError(str(folder), holder)
        try:
            os.truncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
        except OSError:  # a full disk
            self.release()
            raise

    @property
    def is_held(self) -> bool:
        """False after `release`, and in a process forked from the holder's."""
        return self._descriptor in _open_descriptors

    def has_stayed(self) -> bool:
        """Whether the path still names the file that is locked: else a second writer may lock another one.

        The path is looked at once a second. In between the locked file is, in half the time: moving, replacing or
        deleting it changes the number of its links or its change time. A folder that is moved takes it along, and a
        second writer of that folder is refused.
        """
        if self._mark is not None and time.monotonic() < self._look_at:
            status = os.fstat(self._descriptor.number)
            if (status.st_nlink, status.st_ctime_ns) == self._mark:
                return True
        return self._is_in_place()

    def _is_in_place(self) -> bool:
        self._mark = None
        now = time.time_ns()  # first: a change after the look must not seem old
        try:
            status = os.stat(self._place)  # noqa: PTH116 - at every commit of the first moments
        except OSError:
            return False
        if (status.st_dev, status.st_ino) != self._identity:
            return False
        if now - status.st_ctime_ns > (_TICK if status.st_ctime_ns % _SECOND else _LONG_TICK):
            self._mark = status.st_nlink, status.st_ctime_ns
            self._look_at = time.monotonic() + _LOOK_SECONDS
        return True

    def release(self) -> None:
        """Give the writer lock up. The file stays: unlinking it would let two writers lock two files."""
        self._finalizer()


class _Descriptor:
    """An open writer.lock. While open, it is listed apart from its WriterLock, so that a forked child finds it."""

    def __init__(self, number: int) -> None:
        self.number = number
        _open_descriptors.add(self)

    def close(self) -> None:
        """Does nothing in a forked child, which has closed it already: the number may belong to another file there."""
        if self in _open_descriptors:
            fcntl.flock(self.number, fcntl.LOCK_UN)  # a child forked after the next line keeps the file, not the lock
            _open_descriptors.discard(self)
            os.close(self.number)


_open_descriptors: set[_Descriptor] = set()


def _disown_all() -> None:
    """In a forked child. It is closed, not unlocked, because the lock is the parent's."""
    inherited = list(_open_descriptors)
    _open_descriptors.clear()  # first: a lock that is collected meanwhile must not unlock the file
    for descriptor in inherited:
        with contextlib.suppress(OSError):
            os.close(descriptor.number)


os.register_at_fork(after_in_child=_disown_all)


def _open(path: Path, group: int | None) -> int:
    """Raises StorePermissionError."""
    try:
        return _open_or_create(path, group)
    except StorePermissionError:
        raise
    except PermissionError as error:
        raise StorePermissionError(
            f"{path} cannot be written.", remedy="Run the writer as the registry's owner."
        ) from error


def _open_or_create(path: Path, group: int | None) -> int:
    try:
        return open_file(path, os.O_RDWR)
    except FileNotFoundError:
        pass
    with contextlib.suppress(FileExistsError):  # another writer was quicker
        os.close(
            os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, access.mode_for_umask(access.WRITER_LOCK))
        )
        access.admit(path, group, access.WRITER_LOCK)
    return open_file(path, os.O_RDWR)


def _locked(file: int) -> bool:
    """Tries several times: `lock_holder` takes the lock for a moment to see whether it is free."""
    for pause in (0.01, 0.02, 0.04, 0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(pause)
        else:
            return True
    return False


def lock_holder(folder: Path) -> int | None:
    """The pid of the registry's writer. None: there is no writer. 0: there is one, and its pid is not known."""
    try:
        file = open_file(folder / WRITER_LOCK_FILE, os.O_RDONLY)
    except OSError:  # a link too
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return holder_of(file) or 0
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # unlocked even if a child forked meanwhile has the file too
        os.close(file)
    return None
