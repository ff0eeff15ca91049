"""The commit path: one draft, one durable transaction, and the revision word around it.

    stage the draft -> write it into the transaction -> odd word -> durable commit -> even word -> acknowledge

All refusals come before the odd word. A commit that fails after the odd word leaves the word odd. Readers still get
right answers, and the next commit first finds out what landed.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lmdb

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import StoreClosedError, StoreError
from dspy_registry.registry_store.handles import translated
from dspy_registry.registry_store.records import By
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.writer import failpoints
from dspy_registry.writer.aliases import AliasIndex
from dspy_registry.writer.apply import Operations, apply
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.classes import ClassIndex
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.known import Known
from dspy_registry.writer.ownership import Ownership
from dspy_registry.writer.program_index import ProgramIndex
from dspy_registry.writer.ringer import Ringer
from dspy_registry.writer.writer_lock import WriterLock

_DROPPED_AT_ONCE: Final = 256
_WORTH_REBUILDING: Final = 10_000
_FIELDS: Final = {name: name.decode() for name in layout.DATABASES}  # of `Databases`
_COMMITS_BETWEEN_REAPINGS: Final = 64  # until then, pages that a dead reader saw take up room


class Committer:
    """Commits drafts, one at a time. Threads may share it. It holds the writer lock for as long as it lives."""

    def __init__(self, environment: Environment, revision_file: RevisionFile, lock: WriterLock) -> None:
        self._environment = environment
        self._lock = lock
        self._revision_file = revision_file
        self._ringer = Ringer(revision_file)
        self._ownership = Ownership(environment, revision_file, lock)
        self._is_word_right = True  # the word says what landed
        self._is_disk_broken = False
        self._is_closed = False
        self._since_reaping = 0
        self.last_change: Change | None = None
        """What the newest commit of this writer changed. None: nothing that a reader can see, or there was none."""
        self.last_sync = 0.0
        """Seconds that LMDB took to make the newest commit durable."""
        self._aliases = AliasIndex()
        self._classes = ClassIndex()
        self._programs = ProgramIndex()
        self._known = Known()

    @property
    def revision(self) -> int:
        """The newest committed revision."""
        with self._environment.reading() as txn:
            return Catalog(txn, self._environment.dbs).state.revision

    def close(self) -> None:
        """Wait for the commit under way, and refuse all later commits. The caller gives up the writer lock next."""
        with self._environment.write_gate:
            self._is_closed = True
        self._ringer.end()

    @property
    def is_lost(self) -> bool:
        """Whether another process took the registry's files from this writer: it commits nothing more."""
        return self._ownership.lost is not None

    @property
    def is_unused(self) -> bool:
        """Whether no module was ever registered."""
        with self._environment.reading() as txn:
            return Catalog(txn, self._environment.dbs).state.next_sequence == 0

    def commit(self, stage: Callable[[Draft], None], by: By | None = None) -> int:
        """Let `stage` fill a draft and make it durable; the revision in which it is visible.

        `by` asks for it. None: it is not known who does, or `stage` knows it of each part.

        An exception of `stage` is raised, and nothing is changed. A draft makes no new revision when readers cannot
        see a difference. Raises StoreError when the disk refuses, StoreClosedError after `close`.
        """
        with self._environment.write_gate:
            self.last_change = None
            self._make_ready()
            txn = self._environment.begin_writing()
            try:
                number = self._ownership.verify(txn)
                catalog = Catalog(txn, self._environment.dbs, self._aliases, self._classes, self._programs, self._known)
                draft = Draft(catalog, by=by)
                stage(draft)
                operations = apply(draft, time.time_ns() // 1_000_000)
                if not operations:
                    txn.abort()
                    return catalog.state.revision
                self._known.expect(operations)
                write(txn, self._environment, operations)
                self._land(txn, operations, number)
                self._known.state = operations.state or catalog.state
                self.last_change = operations.change
                if operations.change is not None:
                    self._aliases.follow(catalog.state.revision, operations.change.revision, draft.aliases)
                    self._programs.follow(
                        catalog.state.revision, operations.change.revision, operations.references or {}
                    )
                    self._ringer.ring()
            except lmdb.Error as error:
                txn.abort()
                self._is_disk_broken = error.code == errno.EIO
                raise translated(error, self._environment.folder) from error
            except BaseException:
                txn.abort()
                raise
            return operations.change.revision if operations.change else catalog.state.revision

    def _land(self, txn: Any, operations: Operations, number: int) -> None:
        change = operations.change
        if layout.LAYERS in operations.puts or layout.LAYERS in operations.deletes:
            self._classes.forget()
        failpoints.reach("before_odd_word")
        # Whatever is raised from here on, a KeyboardInterrupt too, the next commit recovers the word.
        self._is_word_right = False
        if change is not None:
            self._revision_file.announce(change, operations.announcement)
        began = time.monotonic()
        failpoints.reach("before_commit")  # a slow disk is simulated here, and counts as one
        txn.commit()
        self.last_sync = time.monotonic() - began
        failpoints.reach("before_even_word")
        if change is not None:
            self._revision_file.conclude(change.revision)
        if change is None or layout.USAGE in operations.puts or layout.USAGE in operations.deletes:
            self._revision_file.count_silent_commit()
        self._ownership.confirm()
        self._ownership.note(number)
        self._is_word_right = True
        failpoints.reach("before_acknowledgement")

    def _make_ready(self) -> None:
        """A commit needs the lock and a word that says what landed. Dead readers' slots are freed now and then."""
        if self._is_closed or not self._lock.is_held:
            raise closed(self._environment.folder)
        if self._ownership.lost is not None:
            raise self._ownership.lost
        if not self._is_word_right:
            self._recover()
        if self._since_reaping >= _COMMITS_BETWEEN_REAPINGS:
            self._environment.reap()
            self._since_reaping = 0
        self._since_reaping += 1

    def _recover(self) -> None:
        """After a commit that failed. LMDB can be trusted again only after it was closed and opened."""
        if self._is_disk_broken:
            raise StoreError(
                f"{self._environment.folder}: the disk failed to write a commit, and what it holds now is not known.",
                remedy="Look for disk errors in the system log, and for a full disk. Then start a new writer.",
            )
        with self._environment.gate:
            if self._environment.open_snapshots:
                raise StoreError(
                    f"{self._environment.folder}: a commit failed and snapshots are open in this process.",
                    remedy="Close them, then repeat the change.",
                )
            self._environment.close()
            self._environment.open()
        self._known.forget()
        self._ownership.recover()
        self._is_word_right = True


def closed(folder: Path) -> StoreClosedError:
    """The error for a writer that may not write any longer."""
    return StoreClosedError(
        f"the writer of {folder} is closed, or belongs to the process this one was forked from.",
        remedy="Open another writer, or send changes with WriterClient.",
    )


def write(txn: Any, environment: Environment, operations: Operations) -> None:
    """Put the operations into the transaction."""
    dbs = environment.dbs
    for name, keys in operations.deletes.items():
        database = getattr(dbs, _FIELDS[name])
        for key in keys:
            txn.delete(key, db=database)
    for name, puts in operations.puts.items():
        database = getattr(dbs, _FIELDS[name])
        if len(puts) == 1:
            for key, value in puts.items():
                txn.put(key, value, db=database)
        else:
            _put_all(txn, database, puts)
    if operations.change is not None:
        _drop_old_changes(txn, environment, operations.change.revision)


def _put_all(txn: Any, database: Any, puts: dict[bytes, bytes]) -> None:
    """Write in key order. If more is written than is stored, both are merged and appended, which fills the pages."""
    if len(puts) >= _WORTH_REBUILDING and len(puts) > txn.stat(database)["entries"]:
        puts = {**dict(txn.cursor(database)), **puts}
        txn.drop(database, delete=False)
        txn.cursor(database).putmulti(sorted(puts.items()), append=True)
    else:
        txn.cursor(database).putmulti(sorted(puts.items()))


def _drop_old_changes(txn: Any, environment: Environment, revision: int) -> None:
    """Bound the change log. Many entries go at once, so that most commits do not touch its oldest pages."""
    if revision % _DROPPED_AT_ONCE or revision <= layout.CHANGES_KEPT:
        return
    oldest_kept = layout.revision_key(revision - layout.CHANGES_KEPT)
    cursor = txn.cursor(environment.dbs.changes)
    while cursor.first() and cursor.key() < oldest_kept:
        cursor.delete()
