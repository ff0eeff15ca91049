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
from dspy_registry.registry_store.changes import Change, State, change_codec, state_codec
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import StoreClosedError, StoreError
from dspy_registry.registry_store.handles import translated
from dspy_registry.registry_store.revision import RevisionFile, committed, under_way
from dspy_registry.writer import failpoints
from dspy_registry.writer.aliases import AliasIndex
from dspy_registry.writer.apply import Operations, apply
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.lease import Lease

_DROPPED_AT_ONCE: Final = 256
_WORTH_REBUILDING: Final = 10_000
_COMMITS_BETWEEN_REAPINGS: Final = 64  # until then, pages that a dead reader saw take up room


class Committer:
    """Commits drafts, one at a time. Threads may share it. It holds the lease for as long as it lives."""

    def __init__(self, environment: Environment, revision_file: RevisionFile, lease: Lease) -> None:
        self._environment = environment
        self._lease = lease
        self._revision_file = revision_file
        self._is_word_right = True  # the word says what landed
        self._is_disk_broken = False
        self._is_closed = False
        self._since_reaping = 0
        self._aliases = AliasIndex()

    @property
    def revision(self) -> int:
        """The newest committed revision."""
        with self._environment.reading() as txn:
            return Catalog(txn, self._environment.dbs).state.revision

    def close(self) -> None:
        """Wait for the commit under way, and refuse all later commits. The caller gives up the lease next."""
        with self._environment.write_gate:
            self._is_closed = True

    @property
    def is_unused(self) -> bool:
        """Whether no module was ever registered."""
        with self._environment.reading() as txn:
            return Catalog(txn, self._environment.dbs).state.next_sequence == 0

    def commit(self, stage: Callable[[Draft], None]) -> int:
        """Let `stage` fill a draft, and make it durable. Returns the revision in which it is visible.

        An exception of `stage` is raised, and nothing is changed. A draft makes no new revision when readers cannot
        see a difference. Raises StoreError when the disk refuses, StoreClosedError after `close`.
        """
        with self._environment.write_gate:
            self._make_ready()
            txn = self._environment.begin_writing()
            try:
                catalog = Catalog(txn, self._environment.dbs, self._aliases)
                draft = Draft(catalog)
                stage(draft)
                operations = apply(draft, time.time_ns() // 1_000_000)
                if not operations:
                    txn.abort()
                    return catalog.state.revision
                write(txn, self._environment, operations)
                self._land(txn, operations)
                if operations.change is not None:
                    self._aliases.follow(catalog.state.revision, operations.change.revision, draft.aliases)
            except lmdb.Error as error:
                txn.abort()
                self._is_disk_broken = error.code == errno.EIO
                raise translated(error, self._environment.folder) from error
            except BaseException:
                txn.abort()
                raise
            return operations.change.revision if operations.change else catalog.state.revision

    def _land(self, txn: Any, operations: Operations) -> None:
        change = operations.change
        failpoints.reach("before_odd_word")
        # Whatever is raised from here on, a KeyboardInterrupt too, the next commit recovers the word.
        self._is_word_right = False
        if change is not None:
            self._revision_file.announce(change)
        failpoints.reach("before_commit")
        txn.commit()
        failpoints.reach("before_even_word")
        if change is not None:
            self._revision_file.conclude(change.revision)
        if layout.USAGE in operations.puts:
            self._revision_file.usage_word[()] += 1.0
        self._is_word_right = True
        failpoints.reach("before_acknowledgement")

    def _make_ready(self) -> None:
        """A commit needs the lease and a word that says what landed. Dead readers' slots are freed now and then."""
        if self._is_closed or not self._lease.is_held:
            raise closed(self._environment.folder)
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
        recover_word(self._environment, self._revision_file)
        self._is_word_right = True


def closed(folder: Path) -> StoreClosedError:
    """The error for a writer that may not write any longer."""
    return StoreClosedError(
        f"the writer of {folder} is closed, or belongs to the process this one was forked from.",
        remedy="Open another writer, or send changes with WriterClient.",
    )


def recover_word(environment: Environment, revision_file: RevisionFile) -> bool:
    """Make the word say what really landed. False when the word cannot be of this registry.

    A commit that was announced and did not land is followed by an empty one of the same revision. Readers may have
    seen its odd word with its announcement, and must never see that word with another announcement.
    """
    with environment.write_gate:
        with environment.writing() as txn:
            state = Catalog(txn, environment.dbs).state
            word = revision_file.word[()]
            if word == under_way(state.revision + 1):
                state = State(state.revision + 1, state.committed_at, state.next_sequence)
                _put_empty_commit(txn, environment, state)
            elif word not in (committed(state.revision), under_way(state.revision)):
                return False
        revision_file.conclude(state.revision)
        revision_file.usage_word[()] += 1.0  # statistics may have landed without it
        return True


def _put_empty_commit(txn: Any, environment: Environment, state: State) -> None:
    change = Change(state.revision, state.committed_at)
    key = layout.revision_key(state.revision)
    txn.put(key, change_codec.dump(change), db=environment.dbs.changes)
    txn.put(layout.META_STATE, state_codec.dump(state), db=environment.dbs.meta)


def write(txn: Any, environment: Environment, operations: Operations) -> None:
    """Put the operations into the transaction."""
    for name, keys in operations.deletes.items():
        database = _handle(environment, name)
        for key in keys:
            txn.delete(key, db=database)
    for name, puts in operations.puts.items():
        _put_all(txn, _handle(environment, name), puts)
    if operations.change is not None:
        _drop_old_changes(txn, environment, operations.change.revision)


def _handle(environment: Environment, name: bytes) -> Any:
    return getattr(environment.dbs, name.decode())


def _put_all(txn: Any, database: Any, puts: dict[bytes, bytes]) -> None:
    """Write in key order. If more is written than is stored, both are merged and appended, which fills the pages."""
    if len(puts) >= _WORTH_REBUILDING and len(puts) > txn.stat(database)["entries"]:
        puts = {**dict(txn.cursor(database)), **puts}
        txn.drop(database, delete=False)
        txn.cursor(database).putmulti(sorted(puts.items()), append=True)
    elif len(puts) == 1:
        for key, value in puts.items():
            txn.put(key, value, db=database)
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
