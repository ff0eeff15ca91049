"""The only place that opens LMDB: for an `Environment`, to create one, and to compare lock.mdb with data.mdb."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final

import lmdb

from dspy_registry.registry_store import access, layout
from dspy_registry.registry_store.errors import FormatVersionError, StorePermissionError
from dspy_registry.registry_store.handles import Databases, translated

_SPARE_TRANSACTIONS: Final = 4
_READER_SLOT_BYTES: Final = 64
_DATA_MODE: Final = 0o644


def open_lmdb(folder: Path, *, writable: bool, create: bool = False) -> Any:
    """Readers use the stored map size. If address space is too small for a map, smaller sizes are tried."""
    sizes = [layout.MAP_SIZE if writable else 0]
    while sizes[-1] != layout.SMALLEST_MAP_SIZE:
        sizes.append(max((sizes[-1] or layout.MAP_SIZE) >> 2, layout.SMALLEST_MAP_SIZE))
    for size in sizes:
        try:
            env = lmdb.open(
                os.fspath(folder),
                map_size=size,
                readonly=not writable,
                create=create,
                mode=_DATA_MODE if create else access.LOCK,  # reduced by umask; access.LOCK: a missing lock.mdb
                max_readers=layout.MAX_READERS,
                max_dbs=len(layout.DATABASES) + 8,
                max_spare_txns=_SPARE_TRANSACTIONS,
                readahead=False,
                meminit=False,
            )
        except lmdb.Error as error:
            if error.code == errno.ENOMEM and size != sizes[-1]:
                continue
            raise translated(error, folder) from error
        break
    if "no reader locks" in env.readers():
        env.close()
        raise StorePermissionError(
            f"{folder} is on a read-only file system, where readers cannot hold a snapshot.",
            remedy="Mount it writable for readers too (they write only to lock.mdb).",
        )
    return env


def open_databases(env: Any, *, writable: bool) -> Databases:
    """Raises FormatVersionError before anything is created in a registry of another format."""
    try:
        return _open_databases(env, writable)
    except lmdb.ReadersFullError:
        env.reader_check()  # frees the slots of dead readers
        return _open_databases(env, writable)


def _open_databases(env: Any, writable: bool) -> Databases:
    _refuse_other_formats(env)
    return Databases(*[env.open_db(name, create=writable) for name in layout.DATABASES])


def _refuse_other_formats(env: Any) -> None:
    try:
        meta = env.open_db(layout.META, create=False)
    except lmdb.NotFoundError:  # not complete yet
        return
    with env.begin(db=meta) as txn:
        found = txn.get(layout.META_FORMAT)
    if found is not None and found.isdigit() and int(found) != layout.FORMAT_VERSION:
        raise FormatVersionError(int(found), layout.FORMAT_VERSION)


def create(folder: Path, *, max_readers: int = layout.MAX_READERS, group: int | None = None) -> None:
    """Create the files of an empty environment. The caller holds the writer's lease.

    `group` is the number of a group that may use them too; None: no group. `max_readers` holds as long as lock.mdb
    exists.
    """
    if not (folder / layout.LOCK_FILE).exists():
        create_lock_file(folder, max_readers=max_readers, group=group)
    env = open_lmdb(folder, writable=True, create=True)
    try:
        open_databases(env, writable=True)
    except lmdb.Error as error:
        raise translated(error, folder) from error
    finally:
        env.close()
    access.admit(folder / layout.DATA_FILE, group, access.DATA)


def create_lock_file(folder: Path, *, max_readers: int = layout.MAX_READERS, group: int | None = None) -> None:
    """Put a new lock.mdb in place, whole or not at all. Processes that have another one open keep using that.

    All its blocks are allocated. LMDB would leave it sparse, and on a full disk SIGBUS kills a reader that touches a
    hole.
    """
    temporary = folder / f".{layout.LOCK_FILE}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            os.fchmod(file.fileno(), access.mode_for_umask(access.LOCK))
            os.posix_fallocate(file.fileno(), 0, (max_readers + 4) * _READER_SLOT_BYTES)
        access.admit(temporary, group, access.LOCK)
        temporary.replace(folder / layout.LOCK_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def lock_file_fits(folder: Path) -> bool:
    """Whether lock.mdb counts the transactions of this data.mdb. Only for `sharing`: it must not be open here.

    LMDB believes lock.mdb as long as any process has it open. With the count of another data file, LMDB would start
    from the wrong one of the two meta pages, and a writer would overwrite pages of the other one.
    """
    if not (folder / layout.DATA_FILE).stat().st_size:  # a file without a transaction: LMDB cannot open it
        return False
    env = open_lmdb(folder, writable=False)
    try:
        env.reader_check()
        with env.begin() as txn:
            fits: bool = txn.id() == env.info()["last_txnid"]
        return fits
    except lmdb.Error as error:
        raise translated(error, folder) from error
    finally:
        env.close()
