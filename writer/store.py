"""Opening a registry for writing: lock, files, identity, recovery, core modules."""

from __future__ import annotations

import os
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path

import lmdb

from dspy_registry.registry_store import access, disk, layout, lookup, opening, sharing
from dspy_registry.registry_store.changes import Implications, State, implications_codec, state_codec
from dspy_registry.registry_store.data_file import (
    has_revision_file,
    is_unfinished,
    refuse_damaged,
    refuse_freed_root,
    refuse_loss,
)
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import (
    DamagedStoreError,
    RegistryNotFoundError,
    StoreError,
    StorePermissionError,
)
from dspy_registry.registry_store.handles import translated
from dspy_registry.registry_store.layers import CORE, Layer
from dspy_registry.registry_store.own_files import refuse_others, refuse_unsafe_folder
from dspy_registry.registry_store.records import ModuleInfo, to_plain
from dspy_registry.registry_store.revision import ID_BYTES, RevisionFile, create_revision_file, data_identity
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS
from dspy_registry.writer.commit import Committer, closed
from dspy_registry.writer.core_modules import CORE_MODULES
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.leftovers import remove_leftovers
from dspy_registry.writer.recovery import recover_word, tell_what_is_missing
from dspy_registry.writer.writer_lock import WriterLock

_REVISION_FILE_MODE = 0o644
_FILES = (layout.DATA_FILE, layout.LOCK_FILE, layout.REVISION_FILE, layout.WRITER_LOCK_FILE)


class Store:
    """A registry that this process, and no other, has open for writing.

    A missing registry is created, with the core modules. `group` is the number of a Unix group that may read what is
    created; None: no group. Raises WriterLockedError, StorePermissionError, FormatVersionError, StoreError.
    """

    def __init__(self, folder: Path, group: int | None = None) -> None:
        self.folder = folder
        self._group = group
        self._committer: Committer | None = None
        with disk.explained(folder):
            make_folder(folder, group)
            refuse_intruders(folder)
            with sharing.shared_lock:  # no fork in between: a child would keep a lock that it does not know
                self._lock = WriterLock(folder, group)
                _stores.add(self)
            try:
                self._open()
            except BaseException as error:
                self._lock.release()
                if isinstance(error, lmdb.Error):
                    raise translated(error, folder) from error
                raise

    def __repr__(self) -> str:
        return f"Store({str(self.folder)!r})"

    def _open(self) -> None:
        remove_leftovers(self.folder)
        if is_unfinished(self.folder):
            refuse_loss(self.folder)
            (self.folder / layout.DATA_FILE).unlink(missing_ok=True)
            opening.create(self.folder, group=self._group)
        else:
            refuse_damaged(self.folder)
            refuse_freed_root(self.folder)
            if not _has_its_lock_file(self.folder):
                opening.create_lock_file(self.folder, group=self._group)
        self._environment = sharing.attach(self.folder, writable=True)
        try:
            self._environment.reap()
            _ensure_identity(self._environment)
            revision_file = _own_revision_file(self._environment)
            committer = Committer(self._environment, revision_file, self._lock)
            if committer.is_unused:  # not "at revision 0": a killed first start may have raised the revision
                committer.commit(seed)
            self._committer = committer
        except BaseException:
            sharing.detach(self._environment)
            raise
        # Detached with the lock if nobody closes the store: a commit under way in another thread holds the lock.
        self._unclosed = weakref.finalize(self._lock, sharing.defer, partial(sharing.detach, self._environment))
        self._unclosed.atexit = False

    @property
    def committer(self) -> Committer:
        """Raises StoreClosedError after `close`, and in a process forked from the writer's."""
        if self._committer is None:
            raise closed(self.folder)
        return self._committer

    @property
    def environment(self) -> Environment:
        """The environment, for the writer's reads."""
        return self._environment

    def close(self) -> None:
        """Detach the environment and release the writer lock. Does nothing the second time."""
        committer, self._committer = self._committer, None
        if committer is not None:
            committer.close()
            self._detach()
            self._lock.release()

    def disown(self) -> None:
        """In a forked child: this process is not the writer."""
        if self._committer is not None:
            self._committer = None
            self._environment.writable = False
            self._detach()

    def _detach(self) -> None:
        if self._unclosed.detach() is not None:
            sharing.detach(self._environment)


_stores: weakref.WeakSet[Store] = weakref.WeakSet()


def _disown_all() -> None:
    for store in list(_stores):
        store.disown()


os.register_at_fork(after_in_child=_disown_all)


def refuse_intruders(folder: Path) -> None:
    """Before the first file is touched: folders, files and data that a writer must leave alone.

    Raises StoreError, StorePermissionError, and DamagedStoreError for another program's LMDB.
    """
    refuse_unsafe_folder(folder)
    refuse_others(*(f"{folder}/{name}" for name in _FILES))
    if not has_revision_file(folder) and not is_unfinished(folder):
        sharing.refuse_foreign(folder)


def make_folder(folder: Path, group: int | None = None) -> None:
    """Make the registry's folder. An existing one keeps its owner and mode. Raises StorePermissionError, StoreError."""
    if folder.is_dir():
        return
    try:
        disk.make_folder_durably(folder, access.mode_for_umask(access.FOLDER))
    except FileExistsError as error:
        if not folder.is_dir():  # else another writer was quicker
            raise StoreError(f"{folder} is not a folder: {error.strerror}.") from error
    except PermissionError as error:
        raise StorePermissionError(
            f"{folder} cannot be created.", remedy="Name a folder this user may write to."
        ) from error
    except NotADirectoryError as error:
        raise StoreError(f"{folder} is not a folder: {error.strerror}.") from error
    else:
        _admit_to_new_folder(folder, group)


def _admit_to_new_folder(folder: Path, group: int | None) -> None:
    try:
        access.admit(folder, group, access.FOLDER)
    except BaseException:
        folder.rmdir()  # else the next writer would take its owner and mode for somebody's choice
        raise


def _has_its_lock_file(folder: Path) -> bool:
    """False where data.mdb came without lock.mdb, or replaced another data.mdb that still has readers."""
    if not (folder / layout.LOCK_FILE).exists():
        return False
    try:
        is_the_same = RevisionFile(folder).data_identity == data_identity(folder)
    except StoreError:
        is_the_same = False
    return is_the_same or sharing.lock_file_fits(folder)


def seed(draft: Draft) -> None:
    """Declare the core modules."""
    for info in CORE_MODULES:
        draft.declare(info.name, core_layer(info))


def core_layer(info: ModuleInfo) -> Layer:
    """What the core declares of one of its modules."""
    fields = {key: value for key, value in to_plain(info).items() if key not in ("name", "examples", "metadata")}
    return Layer(CORE, fields)


def _ensure_identity(env: Environment) -> None:
    """A registry whose creation is new or was cut short gets its first head."""
    with env.reading() as txn:
        found = txn.get(layout.META_FORMAT, None, env.dbs.meta)
    if found is None:
        _write_first_head(env)


def _write_first_head(env: Environment) -> None:
    core: dict[str, Implications] = {CORE: dict(CORE_IMPLICATIONS)}
    with env.writing(env.dbs.meta) as txn:
        txn.put(layout.META_ID, os.urandom(ID_BYTES))
        txn.put(layout.META_STATE, state_codec.dump(State(0, 0, 0), layout.META_STATE, env.dbs.format))
        txn.put(layout.META_VOCABULARY, implications_codec.dump(core, layout.META_VOCABULARY, env.dbs.format))
        txn.put(layout.META_FORMAT, b"%d" % env.dbs.format)


def _own_revision_file(env: Environment) -> RevisionFile:
    """Make a new revision file, which says what landed. The former file is retired in any case.

    Since the last writer, older files may have been copied over these, and inodes do not show that. Then a revision
    that readers have seen comes again with other content. So readers drop their caches when a writer opens.
    """
    _refuse_foreign_lock_file(env)
    with env.reading() as txn:
        registry_id = bytes(txn.get(layout.META_ID, b"", env.dbs.meta))
    try:
        file = RevisionFile(env.folder, writable=True)
        belongs = file.registry_id == registry_id and file.data_identity == data_identity(env.folder)
        if belongs and recover_word(env, file):
            create_revision_file(env.folder, registry_id, int(file.word[()]) // 2, _REVISION_FILE_MODE)
            return RevisionFile(env.folder, writable=True)
        if file.registry_id == registry_id and not belongs:  # both were copied, or data.mdb was
            tell_what_is_missing(env, file)
    except (RegistryNotFoundError, DamagedStoreError):  # none, or not a sound one
        pass
    return _new_identity(env)


def _refuse_foreign_lock_file(env: Environment) -> None:
    """LMDB would go by the older of the two newest commits: a data.mdb was restored beside live readers' lock.mdb."""
    newest, counted = env.transaction_numbers()
    if counted != newest:
        raise StoreError(
            f"{env.folder}: lock.mdb is of another data.mdb (it counts {counted} transactions, data.mdb {newest}).",
            remedy="Stop every process that uses this registry, delete lock.mdb, then start the writer again.",
        )


def _tell_of_a_silent_commit(folder: Path) -> None:
    """The commit of a killed writer may have become visible just now, and no word says so before the next commit."""
    with suppress(StoreError):
        RevisionFile(folder, writable=True).count_silent_commit()


def _new_identity(env: Environment) -> RevisionFile:
    registry_id = os.urandom(ID_BYTES)
    with env.writing(env.dbs.meta) as txn:
        _tell_of_a_silent_commit(env.folder)
        txn.put(layout.META_ID, registry_id)
        state = lookup.load_state(txn, env.dbs)
    create_revision_file(env.folder, registry_id, state.revision, _REVISION_FILE_MODE)
    return RevisionFile(env.folder, writable=True)
