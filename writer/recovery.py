"""After a commit that failed, or a writer that died: the word is made to say what really landed."""

from __future__ import annotations

import logging
from typing import Any

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import Change, State, change_codec, state_codec
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.revision import (
    RevisionFile,
    committed,
    missing_commits,
    under_way,
)
from dspy_registry.writer.catalog import Catalog

_log = logging.getLogger("dspy_registry")


def recover_word(environment: Environment, revision_file: RevisionFile) -> bool:
    """Make the word say what really landed. False when word and registry have nothing to do with each other.

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
                _tell_what_is_missing(environment, word, state.revision)
                return False
        revision_file.conclude(state.revision)
        revision_file.count_silent_commit()  # one may have landed without it
        return True


def tell_what_is_missing(environment: Environment, revision_file: RevisionFile) -> None:
    """Log it where the word of this registry's file names a commit that data.mdb does not hold."""
    word = revision_file.word[()]
    with environment.reading() as txn:
        _tell_what_is_missing(environment, word, Catalog(txn, environment.dbs).state.revision)


def _tell_what_is_missing(environment: Environment, word: float, revision: int) -> None:
    missing = missing_commits(environment.folder, word, revision)
    if missing is not None:
        _log.error("%s", missing)


def _put_empty_commit(txn: Any, environment: Environment, state: State) -> None:
    change = Change(state.revision, state.committed_at)
    key, kept_as = layout.revision_key(state.revision), environment.dbs.format
    txn.put(key, change_codec.dump(change, key, kept_as), db=environment.dbs.changes)
    txn.put(layout.META_STATE, state_codec.dump(state, layout.META_STATE, kept_as), db=environment.dbs.meta)
