"""Locks on single bytes of a file. A lock ends when its holder ends, after kill -9 too.

They are open-file-description locks. These exclude other processes but not threads of the same one, so a table of held
bytes stands beside them. An entry is made before its lock and removed after it, and a collected `Hold` gives its byte
back. So an exception between any two lines leaks nothing. A byte is unlocked and its entry removed under a lock of
threads: otherwise the second of two threads that give back one byte would unlock it for its next holder. A fork shares
the description, so the child closes it. A mapping keeps its description open, in the child too, so the file is mapped
through another descriptor.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.own_files import open_file
from dspy_registry.registry_store.paths import FileIdentity

_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_fcntl = fcntl.fcntl
_LOCK: Final = fcntl.F_OFD_SETLK
_LOOK: Final = fcntl.F_OFD_GETLK
_TAKEN: Final = (errno.EAGAIN, errno.EACCES)


@lru_cache(maxsize=4096)
def request_to_lock(start: int, length: int = 1) -> bytes:
    """The argument of fcntl to lock bytes. A length of 0: up to the end of the file, even when the file grows."""
    return _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)


@lru_cache(maxsize=4096)
def request_to_unlock(start: int, length: int = 1) -> bytes:
    """The argument of fcntl to unlock bytes, as in `request_to_lock`."""
    return _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, start, length, 0)


class LockedFile:
    """An open file whose bytes can be held. Opened for reading and writing; closed in a forked child.

    `identity` is its device and inode. Never map `descriptor`.
    """

    descriptor = -1

    def __init__(self, path: Path) -> None:
        self.held: dict[int, weakref.ref[Hold]] = {}
        self.giving_back = threading.RLock()  # reentrant: a collected hold may give its byte back within
        with _opening:  # no fork may come between the two lines
            self.descriptor = open_file(path, os.O_RDWR)
            _open_files.add(self)
        self.identity = descriptor_identity(self.descriptor)

    def __del__(self) -> None:
        self.close()

    @property
    def is_open(self) -> bool:
        """False after `close`, and in a process forked from the one that opened it."""
        return self.descriptor >= 0

    def close(self) -> None:
        """Close the file. This ends every lock on it."""
        with self.giving_back:
            descriptor, self.descriptor = self.descriptor, -1
            self.held.clear()
            if descriptor >= 0:
                os.close(descriptor)

    def lock(self, start: int, length: int = 1) -> bool:
        """Lock these bytes. False: another open file has a lock on some of them, and nothing was locked."""
        try:
            _fcntl(self.descriptor, _LOCK, request_to_lock(start, length))
            return True
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            return False

    def unlock(self, start: int, length: int = 1) -> None:
        """Unlock these bytes. Does nothing if they are not locked."""
        _fcntl(self.descriptor, _LOCK, request_to_unlock(start, length))

    def is_locked_elsewhere(self, start: int, length: int = 1) -> bool:
        """Whether another open file, of this or another process, has a lock on any of these bytes."""
        answer = _fcntl(self.descriptor, _LOOK, request_to_lock(start, length))
        kind: int = _FLOCK.unpack(answer)[0]
        return kind != fcntl.F_UNLCK

    def is_held(self, start: int) -> bool:
        """Whether anyone, in this process or another, has this byte."""
        return start in self.held or self.is_locked_elsewhere(start)

    def sweep(self) -> None:
        """Give back the bytes of holds that no longer exist: an exception can interrupt a finalizer too."""
        for start, owner in list(self.held.items()):
            if owner() is None and self.is_open:
                self.give_back(start, owner)

    def give_back(self, start: int, owner: weakref.ref[Hold]) -> None:
        """Unlock a byte and remove its entry, if it is this owner's. A second call does nothing."""
        with self.giving_back:
            if self.held.get(start) is owner:
                self.let_go(start)

    def let_go(self, start: int) -> None:
        """Unlock a byte and remove its entry. The caller holds `giving_back`, and has seen whose the byte is."""
        _fcntl(self.descriptor, _LOCK, request_to_unlock(start))
        del self.held[start]


class Hold:
    """One held byte of a file, or none. `take` a byte, then `give_back`: at any time, and any number of times.

    A hold that is garbage-collected gives its byte back.
    """

    __slots__ = ("__weakref__", "_me", "file", "start")

    def __init__(self, file: LockedFile) -> None:
        self.start = -1
        self.file = file
        self._me = weakref.ref(self)

    def __del__(self) -> None:
        if self.start >= 0:
            self.give_back()

    def take(self, start: int) -> bool:
        """Take this byte. False: it is taken. The hold must have no byte yet."""
        file, me = self.file, self._me
        held = file.held
        if start in held:
            return False
        self.start = start  # from here on `give_back` knows what to look for
        if held.setdefault(start, me) is me:
            try:  # as `LockedFile.lock` does, but without its calls
                _fcntl(file.descriptor, _LOCK, request_to_lock(start))
                return True
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
            del held[start]
        self.start = -1
        return False

    @property
    def is_held(self) -> bool:
        """Whether it holds a byte. A byte that the parent took before a fork does not count."""
        return self.start >= 0 and self.file.held.get(self.start) is self._me

    def give_back(self) -> None:
        """Let go of the byte."""
        if self.is_held:
            self.file.give_back(self.start, self._me)
        self.start = -1  # last: after an exception before it, the next call goes on


def descriptor_identity(descriptor: int) -> FileIdentity:
    """The device and inode of an open file."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


# Fork

_opening = threading.RLock()
_open_files: weakref.WeakSet[LockedFile] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for file in list(_open_files):
        file.held.clear()  # first: a hold that is collected now must not touch the parent's locks
        file.giving_back = threading.RLock()  # another thread of the parent may have had it
        file.close()
    _open_files.clear()
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_after_fork_in_child)
