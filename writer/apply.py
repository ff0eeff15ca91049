"""From a draft to the operations that write it: records, indexes, history and the change log. It reads, and is pure.

All of them are computed from the old and the new state of each changed module, so they agree (invariant I5).
"""

from __future__ import annotations

from functools import cached_property

import msgspec

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import (
    Action,
    Alias,
    AliasChange,
    LabelChange,
    ModuleChange,
    State,
    alias_codec,
    change_codec,
    implications_codec,
    state_codec,
)
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import Label, label_codec
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.lookup import vocabulary_of
from dspy_registry.registry_store.names import ALL, are_indexed_alike, terms
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, row_of, store_row
from dspy_registry.registry_store.policy_rows import policy_codec
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.registry_store.vocabulary import Vocabulary
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry
from dspy_registry.writer.indexes import PostingChanges
from dspy_registry.writer.kept_history import KeptHistory, record_of
from dspy_registry.writer.log_entry import LogEntry
from dspy_registry.writer.operations import Operations as Operations
from dspy_registry.writer.staged_rows import write_layers, write_programs


def apply(draft: Draft, now: int) -> Operations:
    """The operations of a draft. `now` is the commit's time in milliseconds since the epoch."""
    return _Application(draft, now).operations()


class _Application:
    """One pass over a draft."""

    def __init__(self, draft: Draft, now: int) -> None:
        self._draft = draft
        self._catalog: Catalog = draft.catalog
        self._now = now
        self._format = draft.catalog.format
        self._revision = draft.catalog.state.revision + 1
        self._result = Operations()
        self._postings = PostingChanges()
        self._log = LogEntry()
        self._history = KeptHistory(draft, self._result)
        # Rows of names that change. A module that is removed and registered in one draft changes them too: it logs
        # an update.
        self._order: dict[int, list[str]] = {}
        declared = draft.implications
        self._implications: bytes | None = None
        if declared is not None:
            self._implications = implications_codec.dump(declared, layout.META_VOCABULARY, self._format)

    def operations(self) -> Operations:
        """Everything of the draft, as puts and deletes."""
        for name, entry in self._draft.modules.items():
            try:
                stored = self._catalog.module(name)
            except CorruptRecordError:
                if entry is not None:
                    raise
                self._remove_damaged(name)
            else:
                self._module(name, stored, entry)
        self._reindex_for_vocabulary()
        self._aliases()
        self._policies()
        self._labels()
        self._log.past.update(dict.fromkeys(self._history.take_over(self._revision, self._now)))
        write_layers(self._draft, self._result)
        write_programs(self._draft, self._result)
        self._blocks()
        self._rows_of_names()
        self._conclude()
        self._requests()
        self._usage()
        self._cluster()
        return self._result

    # Modules

    def _module(self, name: str, stored: StoredModule | None, entry: Entry | None) -> None:
        self._note_override(name, stored, entry)
        if stored is not None and entry is not None and self._only_source_changed(stored, entry):
            kept = stored.provenance
            self._put_record(entry, kept.revision, kept.updated_at)
            return
        past = (*self._draft.dropped.get(name, ()), *(entry.past if entry else ()))
        if stored is None and entry is None and not past:
            return
        self._index(name, stored, entry)
        if entry is not None and entry.global_revision:
            self._history.make_room(name, entry.version)
        in_force = entry.version if entry is not None else 0
        if stored is not None and (entry is None or stored.provenance.version < entry.version):
            self._history.keep(name, stored.provenance.version, self._catalog.record(name), in_force)
        for replaced in past:
            if stored is None or replaced.version > stored.provenance.version:
                self._history.keep(name, replaced.version, self._record(replaced), in_force)
        if entry is not None:
            self._put_record(entry, self._revision, self._now)
        elif stored is not None:
            self._result.deletes[layout.MODULES].append(name.encode())
        if entry is None:
            self._history.forget_usage_of_versions(name)
        self._log_module(name, stored, entry)

    def _remove_damaged(self, name: str) -> None:
        """Unregister a module whose record is damaged: its terms have to be found in the indexes."""
        sequence, terms = self._catalog.indexed_parts(name)
        self._result.deletes[layout.MODULES].append(name.encode())
        self._history.forget_usage_of_versions(name)
        if sequence is not None:
            self._postings.remove(sequence, terms)
            self._resequence(name, sequence, None)
        self._log.modules.append(self._changed(name, "unregistered", self._catalog.last_version(name) + 1))

    def _only_source_changed(self, stored: StoredModule, entry: Entry) -> bool:
        kept = stored.provenance
        if (kept.version, kept.sequence) != (entry.version, entry.sequence):
            return False
        return not entry.global_revision or (encode(stored.info), kept.program) == (entry.encoded, entry.program)

    def _put_record(self, entry: Entry, revision: int, updated_at: int) -> None:
        key = entry.info.name.encode()
        self._result.puts[layout.MODULES][key] = record_of(entry, revision, updated_at, self._format)

    def _record(self, entry: Entry) -> bytes:
        return record_of(entry, self._revision, self._now, self._format)

    def _log_module(self, name: str, stored: StoredModule | None, entry: Entry | None) -> None:
        action: Action = "unregistered"
        if entry is not None:
            version, source = entry.version, entry.source
            action = "updated" if stored is not None else "registered"
        else:
            dropped = self._draft.dropped.get(name, ())
            last = dropped[-1] if dropped else stored.provenance if stored else None
            version, source = (last.version, last.source) if last else (0, "")
        self._log.modules.append(self._changed(name, action, version, source))

    def _changed(self, name: str, action: Action, version: int, source: str = "") -> ModuleChange:
        return ModuleChange(name, action, version, self._draft.changed_by.get(name), source)

    # Indexes

    def _index(self, name: str, stored: StoredModule | None, entry: Entry | None) -> None:
        old = stored.provenance.sequence if stored else None
        new = entry.sequence if entry else None
        is_kept = old == new and old is not None
        if is_kept and self._implications is None and are_indexed_alike(stored.info, entry.info):  # type: ignore[union-attr]
            return
        old_terms = terms(stored.info, self._catalog.vocabulary) if stored else ()
        new_terms = terms(entry.info, self._new_words) if entry else ()
        if is_kept:
            self._postings.replace(old, old_terms, new_terms)  # type: ignore[arg-type]
            return
        if old is not None:
            self._postings.remove(old, old_terms)
        if new is not None:
            self._postings.add(new, new_terms)
        self._resequence(name, old, new)

    def _resequence(self, name: str, old: int | None, new: int | None) -> None:
        if old is not None:
            self._names_beside(old)[old % NAMES_PER_ROW] = GONE
        if new is not None:
            self._names_beside(new)[new % NAMES_PER_ROW] = name

    def _names_beside(self, sequence: int) -> list[str]:
        number = row_of(sequence)
        if number not in self._order:
            self._order[number] = self._catalog.names_in_row(number)
        return self._order[number]

    @cached_property
    def _new_words(self) -> Vocabulary:
        if self._implications is None:
            return self._catalog.vocabulary
        return vocabulary_of(self._implications, self._format)

    def _reindex_for_vocabulary(self) -> None:
        """Re-index modules outside the draft whose capabilities imply other words now than before."""
        if self._implications is None:
            return
        self._result.puts[layout.META][layout.META_VOCABULARY] = self._implications
        old, new = self._catalog.vocabulary, self._new_words
        words = [
            word
            for word in {**old.implications, **new.implications}
            if set(old.expand((word,))) != set(new.expand((word,)))
        ]
        for name in {name for word in words for name in self._catalog.names_with(word)}:
            stored = self._catalog.module(name)
            if stored is not None and name not in self._draft.modules:
                old_terms, new_terms = terms(stored.info, old), terms(stored.info, new)
                self._postings.replace(stored.provenance.sequence, old_terms, new_terms)

    def _blocks(self) -> None:
        for key, block in self._postings.blocks(self._catalog):
            self._put_or_delete(layout.POSTINGS, key, block)

    def _rows_of_names(self) -> None:
        for number, names in self._order.items():
            key = layout.sequence_row_key(number)
            self._put_or_delete(layout.SEQUENCES, key, store_row(names, key, self._format))

    def _put_or_delete(self, database: bytes, key: bytes, value: bytes | None) -> None:
        if value is None:
            self._result.deletes[database].append(key)
        else:
            self._result.puts[database][key] = value

    # Aliases, labels, log

    def _aliases(self) -> None:
        for alias, meaning in self._draft.aliases.meanings.items():
            before = self._catalog.alias(alias)
            if meaning != before:
                self._log_alias(alias, before, meaning)
                key = alias.encode()
                dumped = None if meaning is None else alias_codec.dump(meaning, key, self._format)
                self._put_or_delete(layout.ALIASES, key, dumped)
                self._log.keys[alias] = None

    def _log_alias(self, alias: str, before: Alias | None, after: Alias | None) -> None:
        source = after.source if after else before.source if before else ""
        old, new = (meaning.name if meaning else None for meaning in (before, after))
        self._log.aliases.append(AliasChange(alias, old, new, source, self._draft.aliases.by.get(alias)))

    def _policies(self) -> None:
        for (source, pattern), policy in self._draft.policies.items():
            key = layout.policy_key(source, pattern)
            if policy != self._catalog.policies.get((source, pattern)):
                value = None if policy is None else policy_codec.dump(policy, key, self._format)
                self._put_or_delete(layout.POLICIES, key, value)
                self._log.patterns[pattern] = None

    def _labels(self) -> None:
        for name, labels in self._draft.labels.items():
            before = self._catalog.labels(name)
            for label in {**before, **labels}:
                if before.get(label) != labels.get(label):
                    self._label(name, label, before.get(label), labels.get(label))
            self._history.close_window(name, before, labels)

    def _label(self, name: str, label: str, before: Label | None, after: Label | None) -> None:
        key = layout.label_key(name, label)
        by = self._draft.label_authors.get((name, label))
        dumped = None
        if after is not None:
            stored = msgspec.structs.replace(after, by=by, revision=self._revision, updated_at=self._now)
            dumped = label_codec.dump(stored, key, self._format)
        self._put_or_delete(layout.LABELS, key, dumped)
        old, new = (tuple(found.versions.items()) if found else () for found in (before, after))
        source = after.source if after else before.source if before else ""
        self._log.labels.append(LabelChange(name, label, old, new, source, by))

    def _note_override(self, name: str, stored: StoredModule | None, entry: Entry | None) -> None:
        """Note a module that becomes an override of what other sources declare, or ends as such."""
        old = stored is not None and stored.provenance.source == CLIENT
        new = entry is not None and entry.source == CLIENT
        staged = self._draft.layers.get(name)
        if old == new and staged is None:
            return
        before = self._catalog.layers(name) if stored is not None else {}  # without a record there are no layers
        after = before if staged is None else staged
        if (old and bool(before)) != (new and bool(after)):
            self._log.overrides.append(name)

    def _conclude(self) -> None:
        """Make the change, its entry in the log, and the head, whose revision says whether it landed."""
        if not (self._log or self._postings):
            return
        terms = (*self._postings.terms, ALL) if self._order else self._postings.terms
        change = self._log.change(self._revision, self._now, self._draft.authors, terms, self._catalog)
        self._result.change = change
        key = layout.revision_key(change.revision)
        self._result.announcement = encoded = encode(change)
        is_short = self._format == 1
        dumped = change_codec.dump(change, key, 1) if is_short else change_codec.sealed(encoded, key)
        self._result.puts[layout.CHANGES][key] = dumped
        state = State(change.revision, self._now, self._draft.next_sequence)
        self._result.state = state
        self._result.puts[layout.META][layout.META_STATE] = state_codec.dump(state, layout.META_STATE, self._format)

    def _requests(self) -> None:
        visible_in = self._revision if self._result.change else self._catalog.state.revision
        for client, answers in self._draft.requests.items():
            if answers is None:
                self._result.deletes[layout.REQUESTS].append(client)
            else:
                self._result.puts[layout.REQUESTS][client] = answers(visible_in)

    def _usage(self) -> None:
        """Statistics make no revision: no cache of modules depends on them."""
        for key, row in {**self._draft.usage, **self._history.expired_usage}.items():
            if row is None:
                self._result.deletes[layout.USAGE].append(key)
            else:
                self._result.puts[layout.USAGE][key] = row

    def _cluster(self) -> None:
        """What this host knows of global records and of rollouts, in the commit that shows them."""
        for key, row in {**self._draft.cluster, **self._draft.rollouts}.items():
            self._put_or_delete(layout.META, key, row)
        if self._draft.position is not None:
            self._put_or_delete(layout.META, layout.META_CLUSTER, self._draft.position or None)
