"""Restoring a backup: its data replaces the registry's data, and readers go on meanwhile.

At any time data.mdb is the former file or the restored one, as a whole. Live readers use the former file until a writer
opens the registry. The writer gives it a new identity, and readers notice that at their next read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.check.checker import check_apart
from dspy_registry.registry_store.disk import sync, write_refusals
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import (
    DamagedStoreError,
    InvalidArgumentError,
    RegistryNotFoundError,
    StoreError,
    WriterLockedError,
)
from dspy_registry.registry_store.own_files import new_file, open_binary
from dspy_registry.registry_store.paths import file_identity
from dspy_registry.registry_store.wording import listed
from dspy_registry.writer.leftovers import INCOMING
from dspy_registry.writer.registry_writer import RegistryWriter
from dspy_registry.writer.store import make_folder, refuse_intruders
from dspy_registry.writer.writer_lock import WriterLock, lock_holder

_SHOWN: Final = 3
_NO_ROOM: Final = "The registry is as it was. Free disk space, then repeat it."
_STOP_IT: Final = (
    "Nothing was changed. Stop that writer (`systemctl stop dspy-registry`), restore, then start it again."
)


class Restored(msgspec.Struct, frozen=True):
    """What a restored registry holds. `revision` is the backup's."""

    path: str
    revision: int
    modules: int


def restore(backup: Path, folder: Path) -> Restored:
    """Replace the data of the registry in `folder` by that of a backup. `folder` need not exist.

    Raises WriterLockedError while a writer is open, RegistryNotFoundError where there is no backup, StoreError for
    a damaged backup and when the disk refuses, StorePermissionError, InvalidArgumentError.
    """
    check_restorable(backup, folder)
    refuse_unsound(backup)
    make_folder(folder)
    with open_binary(backup / layout.DATA_FILE) as data, as_owner(folder):
        _refuse_intruders(folder)
        with write_refusals(folder, not_permitted="Restore as the daemon's user.", no_room=_NO_ROOM):
            lock = locked_alone(folder, _STOP_IT)
            try:
                put_in_place(data, folder)
            finally:
                lock.release()
        with RegistryWriter(folder) as writer:
            return Restored(str(folder), writer.revision, _modules(writer.store.environment))


def check_restorable(backup: Path, folder: Path) -> None:
    """What can be said before the backup is read. Raises as `restore` does."""
    if file_identity(backup) == file_identity(folder) is not None:
        raise InvalidArgumentError(f"{backup} is the registry itself.", remedy="Name the folder of a backup.")
    if not (backup / layout.DATA_FILE).exists():
        raise RegistryNotFoundError(
            f"{backup} is no backup: it has no {layout.DATA_FILE}.",
            remedy="Name a folder that `dspy-registry backup` made.",
        )
    refuse_writer(folder, _STOP_IT)


def refuse_writer(folder: Path, remedy: str) -> None:
    """Raises WriterLockedError, with this remedy, while a writer is open. The lock stays free."""
    holder = lock_holder(folder)
    if holder is not None:
        raise _with_remedy(WriterLockedError(str(folder), holder or None), remedy)


def locked_alone(folder: Path, remedy: str) -> WriterLock:
    """The writer lock. Raises WriterLockedError, with this remedy, while a writer is open."""
    try:
        return WriterLock(folder)
    except WriterLockedError as error:
        raise _with_remedy(error, remedy) from None


def _with_remedy(error: WriterLockedError, remedy: str) -> WriterLockedError:
    error.remedy = remedy
    return error


@contextmanager
def as_owner(folder: Path) -> Iterator[None]:
    """As root, act as the folder's owner, so that the daemon can write the files made there."""
    status = folder.stat()
    if os.geteuid() != 0 or status.st_uid == 0:
        yield
        return
    group = os.getegid()
    os.setegid(status.st_gid)
    os.seteuid(status.st_uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)


def refuse_unsound(folder: Path, remedy: str = "Nothing was changed. Restore another backup.") -> None:
    """Raises StoreError, with this remedy, naming the first violations that `check` finds in a registry."""
    violations = [str(violation) for violation in check_apart(folder)]
    if violations:
        raise StoreError(f"{folder} is not sound: {listed(violations, _SHOWN, '; ')}.", remedy=remedy)


def _refuse_intruders(folder: Path) -> None:
    """What a writer would refuse. But a damaged registry is what a restore is for: its `revision` file tells it."""
    try:
        refuse_intruders(folder)
    except DamagedStoreError as error:
        raise DamagedStoreError(
            error.message,
            remedy="Nothing was changed. If nothing else uses this data.mdb, move it away, then repeat it.",
        ) from error


def put_in_place(data: BinaryIO, folder: Path) -> None:
    """Put a data file in the place of the registry's, with its mode and group. The caller holds the writer lock.

    Copy beside the registry's data file, then rename: a rename is all or nothing.
    """
    incoming, current = folder / INCOMING, folder / layout.DATA_FILE
    try:
        with new_file(incoming) as file:
            like = current.lstat() if current.exists() else os.fstat(data.fileno())
            if current.exists() and like.st_gid != os.fstat(file.fileno()).st_gid:
                os.fchown(file.fileno(), -1, like.st_gid)
            os.fchmod(file.fileno(), like.st_mode & 0o777)
            shutil.copyfileobj(data, file)
            file.flush()
            os.fsync(file.fileno())
        incoming.replace(current)
    finally:
        with suppress(FileNotFoundError):
            incoming.unlink()
    sync(folder)


def _modules(environment: Environment) -> int:
    with environment.reading() as txn:
        entries: int = txn.stat(environment.dbs.modules)["entries"]
    return entries
