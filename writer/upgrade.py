"""Upgrading a registry to the newest format, once, with a backup of what it was.

The values are sealed again into a new data file, which then takes the place of the former one, as a restored file does.
So a live reader, of this release or of an older one, has the former file mapped until it opens the registry again. It
never meets a value of another format than the one it knows. A kill leaves the whole former or the whole new registry.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from dspy_registry.registry_store import layout, opening
from dspy_registry.registry_store.backup import backup
from dspy_registry.registry_store.codec import database_seal, key_seal, seal, unseal
from dspy_registry.registry_store.disk import write_refusals
from dspy_registry.registry_store.errors import RegistryNotFoundError, StoreError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.lookup import load_state
from dspy_registry.registry_store.revision import ID_BYTES
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.writer import failpoints
from dspy_registry.writer.leftovers import BUILDING, remove_leftovers
from dspy_registry.writer.restore import as_owner, locked_alone, put_in_place, refuse_unsound, refuse_writer
from dspy_registry.writer.store import Store

_NO_ROOM: Final = "The registry is as it was. Free disk space, then repeat it."
_OWNER: Final = "Upgrade as the daemon's user."
_STOP_IT: Final = (
    "Nothing was changed. Stop that writer (`systemctl stop dspy-registry`), upgrade, then start it again."
)
_PLAIN: Final = (layout.META_FORMAT, layout.META_ID)


class Upgraded(msgspec.Struct, frozen=True):
    """What an upgrade did. `backup` is the folder with the registry as it was; None: it had the newest format."""

    path: str
    former_format: int
    format: int
    revision: int
    modules: int
    backup: str | None


def upgrade(folder: Path, backup_folder: Path | None = None) -> Upgraded:
    """Give the registry in `folder` the newest format. A registry that has it is left untouched.

    `backup_folder` is new or empty; None: `before-upgrade-TIME` within `folder`. Raises WriterLockedError while a
    writer is open, RegistryNotFoundError, StoreError for a damaged registry and when the disk refuses or has too little
    room, StorePermissionError, InvalidArgumentError.
    """
    former = _look(folder)
    if former.format == layout.FORMAT_VERSION:
        return former
    kept = backup_folder or _new_folder(folder)
    with as_owner(folder), write_refusals(folder, not_permitted=_OWNER, no_room=_NO_ROOM):
        group = _group(folder)
        lock = locked_alone(folder, _STOP_IT)
        try:
            remove_leftovers(folder)  # of one that was killed
            _refuse_without_room(folder, kept)
            refuse_unsound(folder, "Nothing was changed. `dspy-registry check` names all; mend it first.")
            failpoints.reach("before_backup")
            made = backup(kept, folder)
            failpoints.reach("before_building")
            _replace(folder)
            failpoints.reach("before_opening")
        finally:
            lock.release()
        Store(folder, group).close()  # a new identity: the former revision file is retired
    return msgspec.structs.replace(_look(folder), former_format=former.format, backup=made.path)


def is_needed(folder: Path) -> bool:
    """Whether `upgrade` would change this registry. Raises as it does, as far as that can be said before it begins."""
    if _look(folder).format == layout.FORMAT_VERSION:
        return False
    refuse_writer(folder, _STOP_IT)
    return True


def _look(folder: Path) -> Upgraded:
    environment = attach(folder)
    try:
        with environment.reading() as txn:
            dbs = environment.dbs
            if txn.get(layout.META_FORMAT, None, dbs.meta) is None:
                raise RegistryNotFoundError(f"the registry in {folder} is not complete yet.")
            revision, modules = load_state(txn, dbs).revision, txn.stat(dbs.modules)["entries"]
            return Upgraded(str(folder), dbs.format, dbs.format, revision, modules, None)
    finally:
        detach(environment)


def _new_folder(folder: Path) -> Path:
    wanted = folder / time.strftime("before-upgrade-%Y%m%d-%H%M%S")
    names = (wanted, *(wanted.with_name(f"{wanted.name}-{number}") for number in range(2, 1000)))
    return next((name for name in names if not name.exists()), wanted)


def _group(folder: Path) -> int | None:
    """The group that the files are for, as the writer that created them was told. None: no particular one."""
    status = (folder / layout.DATA_FILE).stat()
    return status.st_gid if status.st_mode & 0o040 and status.st_gid != os.getegid() else None


def _refuse_without_room(folder: Path, kept: Path) -> None:
    size = (folder / layout.DATA_FILE).stat().st_size
    there = next(place for place in (kept, *kept.parents) if place.exists())
    same = there.stat().st_dev == folder.stat().st_dev
    for place, needed in ((folder, 2 * size if same else size), (there, size)):
        room = os.statvfs(place)
        free = room.f_bavail * room.f_frsize
        if free < needed:
            raise StoreError(
                f"{place} has {free:,} bytes free, and the upgrade needs {needed:,} there.", remedy=_NO_ROOM
            )


def _replace(folder: Path) -> None:
    """Build the new data file beside the former one, then put it in its place."""
    with _building(folder / BUILDING) as building:
        opening.create(building)
        source, target = attach(folder), attach(building, writable=True)
        try:
            with source.long_read() as reading, target.writing() as writing:
                _seal_again(reading, source.dbs, writing, target.dbs)
        finally:
            detach(target)
            detach(source)
        failpoints.reach("before_replacing")
        with (building / layout.DATA_FILE).open("rb") as data:
            put_in_place(data, folder)


@contextmanager
def _building(path: Path) -> Iterator[Path]:
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _seal_again(reading: Transaction, old: Databases, writing: Transaction, new: Databases) -> None:
    """Every row, sealed as the newest format has it. In key order, so that pages are filled."""
    for name in layout.DATABASES_OF_FORMAT_1:
        rows = _sealed_rows(name, reading.cursor(getattr(old, name.decode())), old.format, new.format)
        writing.cursor(getattr(new, name.decode())).putmulti(rows, append=True)
    writing.put(layout.META_ID, os.urandom(ID_BYTES), db=new.meta)
    writing.put(layout.META_FORMAT, b"%d" % new.format, db=new.meta)


def _sealed_rows(name: bytes, rows: Iterator[tuple[bytes, bytes]], old: int, new: int) -> Iterator[tuple[bytes, bytes]]:
    database = database_seal(name)
    for key, value in rows:
        if name in layout.SEALED_ALONE or (name == layout.META and key in _PLAIN):
            yield key, value
        else:
            payload = unseal(value, f"a row of {name.decode()}", key_seal(database, key, old))
            yield key, seal(payload, key_seal(database, key, new))
