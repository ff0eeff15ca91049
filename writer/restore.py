"""Restoring a backup: its data comes in the place of the registry's, beside readers that go on.

Whatever happens in between, data.mdb is the former one or the restored one, whole. Live readers go on with the
former until a writer opens: that gives the registry a new identity, which they notice at their next read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from registry_store import layout
from registry_store.check import check_apart
from registry_store.environment import Environment
from registry_store.errors import InvalidArgumentError, StoreError, StorePermissionError
from registry_store.paths import file_identity
from writer.lease import Lease
from writer.registry_writer import RegistryWriter
from writer.store import make_folder

INCOMING: Final = ".restoring"
_SHOWN: Final = 3


class Restored(msgspec.Struct, frozen=True):
    """What a registry holds after it was restored: `revision` is that of the backup."""

    path: str
    revision: int
    modules: int


def restore(backup: Path, folder: Path) -> Restored:
    """Put the data of a backup in the place of the registry's in `folder`, which need not exist.

    Raises WriterLockedError while a writer is open, RegistryNotFoundError where there is no backup, StoreError for
    one that is not sound and when the disk refuses, StorePermissionError, InvalidArgumentError.
    """
    _refuse_unsound(backup, folder)
    make_folder(folder)
    lease = Lease(folder)
    try:
        with _refusals(folder):
            _put_in_place(backup / layout.DATA_FILE, folder)
    finally:
        lease.release()
    with RegistryWriter(folder) as writer:
        return Restored(str(folder), writer.revision, _modules(writer.store.environment))


def _refuse_unsound(backup: Path, folder: Path) -> None:
    if file_identity(backup) == file_identity(folder) is not None:
        raise InvalidArgumentError(f"{backup} is the registry itself.", remedy="Name the folder of a backup.")
    violations = [str(violation) for violation in check_apart(backup)]
    if violations:
        more = f" and {len(violations) - _SHOWN} more" if len(violations) > _SHOWN else ""
        raise StoreError(
            f"{backup} is not sound: {'; '.join(violations[:_SHOWN])}{more}.",
            remedy="Nothing was changed. Restore another backup.",
        )


def _put_in_place(data: Path, folder: Path) -> None:
    """A copy is made beside the registry's data file first, for a rename is all or nothing."""
    incoming, current = folder / INCOMING, folder / layout.DATA_FILE
    try:
        shutil.copyfile(data, incoming)
        _like(current if current.exists() else data, incoming)
        _sync(incoming)
        incoming.replace(current)
    finally:
        with suppress(FileNotFoundError):
            incoming.unlink()
    _sync(folder)


def _like(model: Path, file: Path) -> None:
    """The mode and, as far as this process may, the owner of the file that it replaces."""
    status = model.stat()
    file.chmod(status.st_mode & 0o777)
    if os.geteuid() == 0:
        os.chown(file, status.st_uid, status.st_gid)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _modules(environment: Environment) -> int:
    with environment.reading() as txn:
        entries: int = txn.stat(environment.dbs.modules)["entries"]
    return entries


@contextmanager
def _refusals(folder: Path) -> Iterator[None]:
    """The system's refusals, as errors of ours that name the registry."""
    try:
        yield
    except PermissionError as error:
        remedy = "Restore as the daemon's user."
        raise StorePermissionError(f"{folder} cannot be written: {error.strerror}.", remedy=remedy) from error
    except OSError as error:
        remedy = "The registry is as it was. Free disk space, then repeat it."
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}.", remedy=remedy) from error
