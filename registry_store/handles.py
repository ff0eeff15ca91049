"""The named databases of an LMDB environment, and LMDB's errors as errors of this project."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Final, NamedTuple

import lmdb

from dspy_registry.registry_store.disk import FREE_SPACE, full, is_full
from dspy_registry.registry_store.errors import (
    RegistryNotFoundError,
    StoreClosedError,
    StoreError,
    StorePermissionError,
)

Transaction = Any  # lmdb.Transaction[bytes]; its stub is generic in what `buffers` was
Database = Any


class Databases(NamedTuple):
    """Handles of the named databases, in the order of `layout.DATABASES`."""

    meta: Database
    modules: Database
    sequences: Database
    postings: Database
    aliases: Database
    layers: Database
    changes: Database
    history: Database
    requests: Database
    usage: Database


_DAMAGED: Final = "Run `dspy-registry check`; restore the files from a copy, or start a new registry in another folder."
_REMEDIES: Final[dict[type[Exception], str]] = {
    lmdb.ReadersFullError: "Stop idle processes or close snapshots: a process takes a slot, a snapshot up to two.",
    lmdb.MapFullError: "Recreate the registry where more address space is allowed (ulimit -v).",
    lmdb.LockError: (
        "Containers that share a registry must share the PID namespace too. "
        "Without containers, another process holds a lock on lock.mdb (`lslocks` names it): end it."
    ),
    lmdb.DiskError: FREE_SPACE,
    lmdb.PanicError: "Look for disk errors in the system log, then restart this process.",
    lmdb.CorruptedError: _DAMAGED,
    lmdb.PageNotFoundError: _DAMAGED,
    lmdb.InvalidError: "Is this a registry's folder? If it was one, restore data.mdb from a copy.",
    lmdb.MemoryError: "Allow this process more address space (ulimit -v).",
}
_PERMISSION_REMEDY: Final = (
    "Readers need read access to the folder and data.mdb, and write access to lock.mdb: "
    "run them as the writer's user or group."
)


def translated(error: lmdb.Error, folder: Path) -> Exception:
    """This project's error for an error of LMDB, with its remedy."""
    said = f"{folder}: {str(error).removeprefix(f'{folder}: ')}."  # on opening, LMDB names the path itself
    if error.code in (errno.EACCES, errno.EPERM, errno.EROFS) or isinstance(error, lmdb.ReadonlyError):
        return StorePermissionError(said, remedy=_PERMISSION_REMEDY)
    if error.code == errno.ENOSPC or (error.code == errno.EIO and is_full(folder)):
        return full(folder)
    if error.code == errno.ENOENT or isinstance(error, lmdb.NotFoundError):
        return RegistryNotFoundError(f"there is no complete registry in {folder}.")
    if "already open" in str(error):
        return StoreError(
            f"{folder} was replaced while this process had its files open.",
            remedy="Close its writer and its snapshots, then open it again.",
        )
    if "closed" in str(error).lower():
        return StoreClosedError(f"{folder} was closed.")
    return StoreError(said, remedy=_REMEDIES.get(type(error)))
