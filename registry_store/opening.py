"""The only place that opens LMDB: for an `Environment`, to create one, and to compare lock.mdb with data.mdb."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Final

import lmdb

from dspy_registry.registry_store import access, layout
from dspy_registry.registry_store.data_file import NOT_OURS, has_revision_file, problem_of, refuse_damaged
from dspy_registry.registry_store.disk import sync
from dspy_registry.registry_store.errors import DamagedStoreError, FormatVersionError, StorePermissionError
from dspy_registry.registry_store.handles import Databases, translated
from dspy_registry.registry_store.own_files import new_file, refuse_others

_SPARE_TRANSACTIONS: Final = 4
_READER_SLOT_BYTES: Final = 64
_LONGEST_FORMAT: Final = 9  # digits
_LOCK_FILE_REMEDY: Final = (
    "Stop every process that uses this registry, delete lock.mdb, then start the writer. data.mdb is not affected."
)


def open_lmdb(folder: Path, *, writable: bool, create: bool = False) -> Any:
    """Readers use the stored map size. If address space is too small for a map, smaller sizes are tried.

    With `create` the caller has seen that there is no data.mdb. Else it is looked at first: see `refuse_damaged`.
    """
    refuse_others(f"{folder}/{layout.LOCK_FILE}", *([f"{folder}/{layout.DATA_FILE}"] if create else ()))
    if not create:
        refuse_damaged(folder)  # and a link
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
                mode=access.mode_for_umask(access.DATA) if create else access.LOCK,  # access.LOCK: a missing lock.mdb
                max_readers=layout.MAX_READERS,
                max_dbs=len(layout.DATABASES) + 8,
                max_spare_txns=_SPARE_TRANSACTIONS,
                readahead=False,
                meminit=False,
            )
        except lmdb.Error as error:
            if error.code == errno.ENOMEM and size != sizes[-1]:
                continue
            if not create and isinstance(error, (lmdb.InvalidError, lmdb.VersionMismatchError)):
                raise _of_lock_file(error, folder) from error
            raise translated(error, folder) from error
        break
    if "no reader locks" in env.readers():
        env.close()
        raise StorePermissionError(
            f"{folder} is on a read-only file system, where readers cannot hold a snapshot.",
            remedy="Mount it writable for readers too (they write only to lock.mdb).",
        )
    return env


def _of_lock_file(error: lmdb.Error, folder: Path) -> DamagedStoreError:
    """LMDB says the same of both files, and `refuse_damaged` has found the meta pages of data.mdb to be sound."""
    damaged = DamagedStoreError(f"{folder / layout.LOCK_FILE} was overwritten ({error}).", remedy=_LOCK_FILE_REMEDY)
    damaged.file = layout.LOCK_FILE
    return damaged


def open_databases(env: Any, folder: Path, *, writable: bool) -> Databases:
    """The databases of a registry. A writer creates what its unfinished creation lacks, and nothing anywhere else.

    Raises FormatVersionError, DamagedStoreError, RegistryNotFoundError, lmdb.Error.
    """
    try:
        return _open_databases(env, folder, writable)
    except lmdb.ReadersFullError:
        env.reader_check()  # frees the slots of dead readers
        return _open_databases(env, folder, writable)


def _open_databases(env: Any, folder: Path, writable: bool) -> Databases:
    version = _format_of(env, folder) or _format_after_creation(env, folder)
    if version is None:
        found = [env.open_db(name, create=writable) for name in layout.DATABASES]
        return _named(found, layout.FORMAT_VERSION)
    first = [_database_of_complete(env, folder, name) for name in layout.DATABASES_OF_FORMAT_1]
    later = [_later_database(env, folder, name, version) for name in layout.DATABASES[len(first) :]]
    return _named([*first, *later], version)


def _named(handles: list[Any], version: int) -> Databases:
    return Databases(**dict(zip(map(bytes.decode, layout.DATABASES), handles, strict=True)), format=version)


def _format_after_creation(env: Any, folder: Path) -> int | None:
    """The format where the head was missing a moment ago. None: its creation is not finished. Raises as above."""
    try:
        refuse_loss_of_head(env, folder)
    except DamagedStoreError:
        version = _format_of(env, folder)
        if version is None:
            raise
        return version  # the creation came to its end in between, and what it left was no damage
    return None


def _database_of_complete(env: Any, folder: Path, name: bytes) -> Any:
    try:
        return env.open_db(name, create=False)
    except lmdb.NotFoundError as error:
        raise problem_of(folder, f"lacks the registry's database {name.decode()}") from error


def _later_database(env: Any, folder: Path, name: bytes, version: int) -> Any:
    """A database that format 1 does not have. None: this registry has none."""
    return _database_of_complete(env, folder, name) if version > 1 else None


def _format_of(env: Any, folder: Path) -> int | None:
    """The format of a registry that has its head; None: it has none. Raises FormatVersionError, DamagedStoreError."""
    try:
        meta = env.open_db(layout.META, create=False)
    except lmdb.NotFoundError:
        return None
    with env.begin(db=meta) as txn:
        found = txn.get(layout.META_FORMAT)
    if found is None:
        return None
    if not (found.isdigit() and len(found) <= _LONGEST_FORMAT):
        raise problem_of(folder, f"has {bytes(found[:20])!r} as the version of its format")
    return known_format(found)


def known_format(stored: bytes) -> int:
    """The format that a registry says it has. Raises FormatVersionError for one that this release does not know."""
    version = int(stored)
    if not layout.FIRST_FORMAT <= version <= layout.FORMAT_VERSION:
        raise FormatVersionError(version, layout.FORMAT_VERSION)
    return version


def refuse_loss_of_head(env: Any, folder: Path) -> None:
    """Raises DamagedStoreError unless a data.mdb without a head is what a creation leaves that was cut short.

    A creation makes empty databases, one in each transaction, then the head, then the revision file.
    """
    if has_revision_file(folder):
        raise problem_of(folder, "has no head, and the file `revision` shows that there was a registry: it is damaged")
    newest = env.info()["last_txnid"]
    with env.begin() as txn:
        number = txn.id()
        names = [bytes(key) for key in txn.cursor().iternext(values=False)]
    # The newest one may be under way, and its meta page is written before any reader may see it.
    if max(number, newest - 1) > len(layout.DATABASES):
        raise problem_of(folder, "has no head of a registry, and more was written to it than creates one", NOT_OURS)
    foreign = [name for name in names if name not in layout.DATABASES]
    if foreign:
        raise problem_of(folder, f"belongs to another program: it holds {foreign[0][:40]!r}", NOT_OURS)
    for name in names:
        database = env.open_db(name, create=False)
        with env.begin() as txn:
            if txn.stat(database)["entries"]:
                raise problem_of(folder, f"has no head of a registry, and its database {name.decode()} is not empty")


def refuse_foreign(folder: Path) -> None:
    """The same for a folder in which this process has nothing open, without touching a file of it: lock.mdb neither."""
    refuse_damaged(folder)
    try:
        env = lmdb.open(
            os.fspath(folder),
            readonly=True,
            lock=False,
            create=False,
            map_size=layout.SMALLEST_MAP_SIZE,
            max_dbs=len(layout.DATABASES) + 8,
        )
    except lmdb.Error as error:
        raise translated(error, folder) from error
    try:
        if _format_of(env, folder) is None:
            refuse_loss_of_head(env, folder)
    except lmdb.Error as error:
        raise translated(error, folder) from error
    finally:
        env.close()


def create(folder: Path, *, max_readers: int = layout.MAX_READERS, group: int | None = None) -> None:
    """Create the files of an empty environment, durably. The caller holds the writer lock.

    `group` is the number of a group that may use them too; None: no group. `max_readers` holds as long as lock.mdb
    exists.
    """
    if not (folder / layout.LOCK_FILE).exists():
        create_lock_file(folder, max_readers=max_readers, group=group)
    env = open_lmdb(folder, writable=True, create=True)
    try:
        open_databases(env, folder, writable=True)
    except lmdb.Error as error:
        raise translated(error, folder) from error
    finally:
        env.close()
    access.admit(folder / layout.DATA_FILE, group, access.DATA)
    sync(folder)  # its entries must be there before the revision file says that the registry is complete


def create_lock_file(folder: Path, *, max_readers: int = layout.MAX_READERS, group: int | None = None) -> None:
    """Put a new lock.mdb in place, whole or not at all. Processes that have another one open keep using that.

    All its blocks are allocated. LMDB would leave it sparse, and on a full disk SIGBUS kills a reader that touches a
    hole.
    """
    temporary = folder / f".{layout.LOCK_FILE}.{os.getpid()}"
    try:
        with new_file(temporary) as file:
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
