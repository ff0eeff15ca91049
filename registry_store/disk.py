"""Errors that the disk causes: it is full, or may not be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import lmdb

from dspy_registry.registry_store.errors import RegistryError, StoreError, StorePermissionError
from dspy_registry.registry_store.remedies import FREE_SPACE, TOO_MANY_FILES

_NEARLY_FULL: Final = 1024 * 1024
"""Bytes. LMDB reports a write that was cut short as EIO. Only the free space shows that the disk was full."""


COMMIT_BYTES: Final = 32 * 1024 * 1024
"""Room that the largest group of requests may need: its records, and the pages of indexes that it writes again."""


def free_bytes(folder: Path) -> int | None:
    """Bytes that can still be written there; None where that cannot be known."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def is_full(folder: Path) -> bool:
    """Whether hardly anything can be written there; False where that cannot be known."""
    free = free_bytes(folder)
    return free is not None and free < _NEARLY_FULL


def full(folder: Path) -> StoreError:
    """The error when there is no room."""
    return StoreError(f"{folder}: the disk is full.", remedy=FREE_SPACE)


@contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raises an OSError from the body as a StoreError that names the folder and a remedy."""
    try:
        yield
    except RegistryError:
        raise
    except OSError as error:
        raise explanation(error, folder) from error


def explanation(error: OSError, folder: Path) -> StoreError:
    """What the system says of a registry's files, as a StoreError with the folder and a remedy."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return full(folder)
    if error.errno == errno.EROFS:
        return StorePermissionError(
            f"{folder} is on a read-only file system.", remedy="Mount it writable, or name a folder elsewhere."
        )
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreError(f"{folder}: {error.strerror}.", remedy=TOO_MANY_FILES)
    return StoreError(f"{folder}: {error.strerror or error}.", remedy="Name a folder that this user can write to.")


@contextmanager
def write_refusals(target: Path, *, not_permitted: str, no_room: str) -> Iterator[None]:
    """Raises an OSError or lmdb.Error from the body as a StoreError about `target`, with one of these two remedies."""
    try:
        yield
    except RegistryError:
        raise
    except PermissionError as error:
        raise StorePermissionError(f"{target} cannot be written: {error.strerror}.", remedy=not_permitted) from error
    except (OSError, lmdb.Error) as error:
        why = getattr(error, "strerror", None) or error
        raise StoreError(f"{target} cannot be written: {why}.", remedy=no_room) from error


def make_folder_durably(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and its missing parents, and sync the entry of each. Raises OSError, FileExistsError too."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=mode, parents=True)
    for made in missing:
        with suppress(PermissionError):  # a parent that this user may enter, not read
            sync(made.parent)


def sync(path: Path) -> None:
    """Make a file's content durable, or a folder's entries. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
