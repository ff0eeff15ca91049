"""A backup: a compacted copy of one revision, taken beside readers and writer. It is a registry by itself.

Its identity is new, and its revision file names no data file. So a writer that opens it, or a copy of it, gives it
another new identity. No reader can then mistake its revisions for those of a registry that it knows.

    python -m dspy_registry.registry_store.backup FOLDER PATH

makes one and prints it as JSON. It exits with 0, with 1 if acknowledged changes are missing in it, or prints what went
wrong on stderr and exits with 2.

It is made in a folder `.partial` inside the target. data.mdb is moved out last: without data.mdb there is no registry.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from dspy_registry.registry_store import access, layout, lookup
from dspy_registry.registry_store.changes import State
from dspy_registry.registry_store.disk import make_folder_durably, sync, write_refusals
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import (
    InvalidArgumentError,
    NotPossibleError,
    RegistryError,
    RegistryNotFoundError,
)
from dspy_registry.registry_store.opening import create_lock_file
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.revision import (
    ID_BYTES,
    NO_DATA_FILE,
    create_revision_file,
    missing_commits,
    newest_word,
)
from dspy_registry.registry_store.sharing import attach, detach

PARTIAL: Final = ".partial"

_EMPTY_FOLDER: Final = "Name a new folder, or an empty one."
_OTHER_FOLDER: Final = "Name a folder this user may write to."
_NO_ROOM: Final = "Nothing is left of the backup. Free disk space, or name another folder."


class Backup(msgspec.Struct, frozen=True):
    """What a backup holds: `path` is its folder, `bytes` the size of its data file.

    `committed_at` is when its revision was committed, in milliseconds since the epoch. `missing` says which
    acknowledged changes it lacks, because the registry's data.mdb lacks them; None: none.
    """

    path: str
    revision: int
    committed_at: int
    modules: int
    bytes: int
    missing: str | None = None


def backup(folder: str | os.PathLike[str], path: str | os.PathLike[str] | None = None) -> Backup:
    """Copy the newest revision of the registry at `path` durably into `folder`. A failure leaves nothing there.

    `path` None means $DSPY_REGISTRY, else the user's data directory. `folder` must be new or empty. Readers and the
    writer go on. Records that are replaced meanwhile take up room until the copy is done. A damaged record is copied
    as it is. `Backup.missing` says whether acknowledged changes are missing.

    Raises RegistryNotFoundError, InvalidArgumentError for a folder that is not empty, StorePermissionError,
    and StoreError if the disk fails or is full.
    """
    target = registry_path(folder)
    source = attach(registry_path(path))
    try:
        word = newest_word(source.folder)  # before the copy: then it tells of no commit that the copy may lack
        with write_refusals(target, not_permitted=_OTHER_FOLDER, no_room=_NO_ROOM), partial_folder(target) as partial:
            _copy(source, partial)
            state, modules = complete(partial)
            put_in_place(partial, target)
            size = (target / layout.DATA_FILE).stat().st_size
        missing = missing_commits(source.folder, word, state.revision)
    finally:
        detach(source)
    return Backup(str(target), state.revision, state.committed_at, modules, size, missing)


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """The folder to make a registry in, inside `target`, which is new or empty. It is removed at the end.

    After a failure `target` is removed too, if it was new. Raises InvalidArgumentError, OSError.
    """
    if target.exists() and not target.is_dir():
        raise InvalidArgumentError(f"{target} is not a folder.", remedy=_EMPTY_FOLDER)
    is_new = not target.exists()
    try:
        if is_new:
            with suppress(FileExistsError):  # another process was quicker
                make_folder_durably(target, access.mode_for_umask(access.FOLDER))
        with _made(target / PARTIAL) as partial:
            _refuse_other_content(target)
            yield partial
    except BaseException:
        if is_new:
            with suppress(OSError):
                target.rmdir()
        raise


@contextmanager
def _made(partial: Path) -> Iterator[Path]:
    try:
        partial.mkdir()  # of two backups into one folder, one fails here
    except FileExistsError as error:
        raise NotPossibleError(
            f"{partial} exists: a backup is being made there, or one was killed.",
            remedy="Name another folder. If no backup is under way, you may remove this one.",
        ) from error
    try:
        yield partial
    finally:
        _remove(partial)


def _remove(partial: Path) -> None:
    """Also where no file can be opened any longer, and so the folder cannot be listed."""
    for name in (layout.DATA_FILE, layout.LOCK_FILE, layout.REVISION_FILE):
        for path in (partial / name, partial / f".{name}.{os.getpid()}"):
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        partial.rmdir()
        return
    shutil.rmtree(partial, ignore_errors=True)


def _refuse_other_content(target: Path) -> None:
    found = sorted(entry.name for entry in target.iterdir() if entry.name != PARTIAL)
    if found:
        more = ", …" if len(found) > 3 else ""
        raise InvalidArgumentError(f"{target} is not empty: {', '.join(found[:3])}{more}.", remedy=_EMPTY_FOLDER)


def _copy(source: Environment, partial: Path) -> None:
    """LMDB's own copy of what one transaction sees, without the free pages."""
    mode = (source.folder / layout.DATA_FILE).stat().st_mode & 0o770  # an earlier release let others read
    with (partial / layout.DATA_FILE).open("xb", buffering=0) as file, source.long_read() as txn:
        if txn.get(layout.META_FORMAT, None, source.dbs.meta) is None:
            raise RegistryNotFoundError(f"the registry in {source.folder} is not complete yet.")
        os.fchmod(file.fileno(), mode)
        source.copy_to(file.fileno(), txn)


def complete(partial: Path) -> tuple[State, int]:
    """Make a registry of the copy: lock file, identity, revision file. Returns its head and its number of modules."""
    create_lock_file(partial)
    registry_id = os.urandom(ID_BYTES)
    environment = attach(partial, writable=True)
    try:
        with environment.writing(environment.dbs.meta) as txn:
            txn.put(layout.META_ID, registry_id)
            state: State = lookup.load_state(txn, environment.dbs)
            modules: int = txn.stat(environment.dbs.modules)["entries"]
    finally:
        detach(environment)
    mode = (partial / layout.DATA_FILE).stat().st_mode & 0o777
    create_revision_file(partial, registry_id, state.revision, mode, data=NO_DATA_FILE)
    return state, modules


def put_in_place(partial: Path, target: Path) -> None:
    """Moves the files out of `.partial`; data.mdb last, after everything else is durable."""
    for name in (layout.LOCK_FILE, layout.REVISION_FILE, layout.DATA_FILE):
        sync(partial / name)
    for name in (layout.LOCK_FILE, layout.REVISION_FILE):
        (partial / name).rename(target / name)
    sync(target)
    (partial / layout.DATA_FILE).rename(target / layout.DATA_FILE)
    sync(target)
    sync(target.parent)


def main(arguments: list[str]) -> int:
    """Runs the command and returns its exit status."""
    if len(arguments) != 2:
        sys.stderr.write("usage: python -m dspy_registry.registry_store.backup FOLDER PATH\n")
        return 2
    try:
        made = backup(*arguments)
    except RegistryError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.buffer.write(msgspec.json.encode(made))
    return 0 if made.missing is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
