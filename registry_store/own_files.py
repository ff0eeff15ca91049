"""Opening files of the registry's folder: regular files only, and no symbolic link is followed.

Others may be able to put files into the folder, as members of its group can. A writer with more rights than they have
must not be led to a file elsewhere. The folder itself may be named by a link.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

from dspy_registry.registry_store.errors import StoreError, StorePermissionError

_REMEDY: Final = "Look who put it there, and remove it: the registry's files are regular files in its folder."


FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # O_NONBLOCK: a pipe would wait for its other end


def open_file(path: str | os.PathLike[str], flags: int) -> int:
    """As os.open, without inheritance. Raises StoreError for a link and for what is not a regular file, OSError."""
    try:
        descriptor = os.open(path, flags | FLAGS, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise not_regular(path) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular(path)
    return descriptor


def open_binary(path: Path, *, writable: bool = False) -> BinaryIO:
    """A file that is there, opened as `open_file` does."""
    return os.fdopen(open_file(path, os.O_RDWR if writable else os.O_RDONLY), "r+b" if writable else "rb")


def not_regular(path: str | os.PathLike[str]) -> StoreError:
    """The error for a link, or something else, in the place of a file."""
    return StoreError(f"{os.fspath(path)} is a symbolic link, or otherwise not a regular file.", remedy=_REMEDY)


def new_file(path: Path) -> BinaryIO:
    """A new file for its user alone, opened for writing. What was there by this name is removed. Raises OSError."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")


def refuse_others(*paths: str) -> None:
    """Raises StoreError for the first path that is there and is not a regular file. For what LMDB opens by name."""
    for path in paths:
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode):
            raise not_regular(path)


def change_owner_and_mode(path: Path, group: int, mode: int) -> None:
    """Give a file, folder or socket to a group. No link is followed. Raises StoreError, OSError.

    O_PATH: to open and close lock.mdb in the usual way would drop LMDB's locks on it.
    """
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if stat.S_ISLNK(os.fstat(descriptor).st_mode):
            raise not_regular(path)
        found = Path(f"/proc/self/fd/{descriptor}")
        os.chown(found, -1, group)
        found.chmod(mode)
    finally:
        os.close(descriptor)


def refuse_unsafe_folder(folder: Path) -> None:
    """Raises StorePermissionError for a folder that is another user's, root's excepted, or that everybody may write."""
    status = folder.stat()
    user = os.geteuid()
    if status.st_uid not in (0, user):
        raise StorePermissionError(
            f"{folder} belongs to user {status.st_uid}, and this writer runs as user {user}.",
            remedy="Run the writer as the folder's owner, or give it the folder (`chown`).",
        )
    if status.st_mode & stat.S_IWOTH:
        raise StorePermissionError(
            f"every user may write to {folder}.", remedy="Take that right away (`chmod o-w`), or name another folder."
        )
