"""The named databases of an LMDB environment, and LMDB's errors as errors of this project."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Final

import lmdb
import msgspec

from dspy_registry.registry_store.disk import full, is_full
from dspy_registry.registry_store.errors import (
    DamagedStoreError,
    NoReaderSlotError,
    RegistryNotFoundError,
    StoreClosedError,
    StoreError,
    StorePermissionError,
    UpgradeRequiredError,
)
from dspy_registry.registry_store.layout import DATA_FILE
from dspy_registry.registry_store.reader_table import described, holders, read_without_slot
from dspy_registry.registry_store.remedies import FREE_SPACE, TOO_MANY_FILES

Transaction = Any  # lmdb.Transaction[bytes]; its stub is generic in what `buffers` was
Database = Any


class Databases(msgspec.Struct, frozen=True, gc=False):
    """Handles of the named databases, in the order of `layout.DATABASES`, and the format of their values.

    A handle is None where there is no such database: it holds nothing. `scan` reads it as empty. LMDB would read its
    main database instead.
    """

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
    labels: Database
    programs: Database
    policies: Database
    format: int

    def need_format_2(self, what: str) -> None:
        """Raises UpgradeRequiredError when the registry has format 1, which cannot hold `what`, a plural."""
        if self.format < 2:
            raise UpgradeRequiredError(f"{what} cannot be kept in a registry of format 1.")


_DAMAGES: Final = (
    lmdb.CorruptedError,
    lmdb.PageNotFoundError,
    lmdb.InvalidError,
    lmdb.IncompatibleError,
    lmdb.CursorFullError,
    lmdb.VersionMismatchError,
)
_REMEDIES: Final[dict[type[Exception], str]] = {
    lmdb.MapFullError: "Recreate the registry where more address space is allowed (ulimit -v).",
    lmdb.LockError: (
        "Containers that share a registry must share the PID namespace too. "
        "Without containers, another process holds a lock on lock.mdb (`lslocks` names it): end it."
    ),
    lmdb.DiskError: FREE_SPACE,
    lmdb.PanicError: "Look for disk errors in the system log, then restart this process.",
    lmdb.MemoryError: "Allow this process more address space (ulimit -v).",
}
# An error without a remedy here is the disk's, or follows an earlier error of the same transaction (MDB_BAD_TXN).
_ANY_REMEDY: Final = "Look for disk errors in the system log, then run `dspy-registry check`, which finds damage."
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
    if isinstance(error, lmdb.ReadersFullError):
        return _no_slot(folder)
    if error.code in (errno.EMFILE, errno.ENFILE):
        return StoreError(said, remedy=TOO_MANY_FILES)
    if "already open" in str(error):
        return StoreError(
            f"{folder} was replaced while this process had its files open.",
            remedy="Close its writer and its snapshots, then open it again.",
        )
    if "closed" in str(error).lower():
        return StoreClosedError(f"{folder} was closed.")
    if isinstance(error, _DAMAGES):
        return DamagedStoreError(f"{folder / DATA_FILE}{said.removeprefix(str(folder))}")
    return StoreError(said, remedy=_REMEDIES.get(type(error), _ANY_REMEDY))


def _no_slot(folder: Path) -> NoReaderSlotError:
    slots, newest = read_without_slot(folder)
    found = holders(slots, newest)
    dead = len(slots) - sum(holder.slots for holder in found)
    named = [described(found)] if found else []
    named += [f"{dead} by processes that have ended, until one of the others reads again"] if dead else []
    return NoReaderSlotError(
        f"{folder}: all slots of LMDB's table of readers are taken{', by ' if named else ''}{'; '.join(named)}."
    )
