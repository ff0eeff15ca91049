"""From a draft to the operations that write it: records, indexes, history and the change log. It reads, and is pure.

All of them are computed from the old and the new state of each changed module, so they agree (invariant I5).
"""

from __future__ import annotations

import msgspec

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import (
    LARGEST_LISTED_CHANGE,
    Action,
    Alias,
    AliasChange,
    Change,
    LabelChange,
    ModuleChange,
    State,
    alias_codec,
    change_codec,
    implications_codec,
    state_codec,
)
from dspy_registry.registry_store.codec import encode, seal_record
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import label_codec, labelled_versions
from dspy_registry.registry_store.layers import defaults_codec, layer_codec
from dspy_registry.registry_store.names import ALL, lookup_keys, terms
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, row_of, store_row
from dspy_registry.registry_store.policy_rows import policy_codec
from dspy_registry.registry_store.records import Provenance, StoredModule
from dspy_registry.writer.aliases import DAMAGED
from dspy_registry.writer.catalog import Catalog, load_vocabulary
from dspy_registry.writer.collection import program_rows
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry
from dspy_registry.writer.indexes import PostingChanges
from dspy_registry.writer.label_rows import changed_labels, is_override_changed, labels_after, released_versions
from dspy_registry.writer.operations import Operations as Operations


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
        self._changes: list[ModuleChange] = []
        self._expired_usage: dict[bytes, None] = {}
        self._alias_changes: list[AliasChange] = []
        self._label_changes: list[LabelChange] = []
        self._overrides: list[str] = []
        self._keys: dict[str, None] = {}
        self._patterns: dict[str, None] = {}
        # Rows of names that change. A module that is removed and registered in one draft changes them too: it logs
        # an update.
        self._order: dict[int, list[str]] = {}
        self._old_words = self._catalog.vocabulary()
        declared = draft.implications
        self._implications: bytes | None = None
        self._new_words = self._old_words
        if declared is not None:
            self._implications = implications_codec.dump(declared, layout.META_VOCABULARY, self._format)
            self._new_words = load_vocabulary(self._implications, self._format)

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
        self._layers()
        self._programs()
        self._blocks()
        self._rows_of_names()
        self._conclude()
        self._requests()
        self._usage()
        self._cluster()
        return self._result

    # Modules

    def _module(self, name: str, stored: StoredModule | None, entry: Entry | None) -> None:
        self._overrides += [name] if is_override_changed(self._draft, name, stored, entry) else []
        if stored is not None and entry is not None and self._only_source_changed(stored, entry):
            kept = stored.provenance
            self._put_record(entry, kept.revision, kept.updated_at)
            return
        past = (*self._draft.dropped.get(name, ()), *(entry.past if entry else ()))
        if stored is None and entry is None and not past:
            return
        self._index(name, stored, entry)
        if entry is not None and entry.global_revision:
            self._make_room(name, entry.version)
        if stored is not None and (entry is None or stored.provenance.version < entry.version):
            self._keep_history(name, stored.provenance.version, self._catalog.record(name))
        for replaced in past:
            if stored is None or replaced.version > stored.provenance.version:
                self._keep_history(name, replaced.version, self._record(replaced, self._revision, self._now))
        if entry is not None:
            self._put_record(entry, self._revision, self._now)
        elif stored is not None:
            self._result.deletes[layout.MODULES].append(name.encode())
        if entry is None:
            self._forget_usage_of_versions(name)
        self._log(name, stored, entry)

    def _remove_damaged(self, name: str) -> None:
        """Unregister a module whose record is damaged: its terms have to be found in the indexes."""
        sequence, terms = self._catalog.indexed_parts(name)
        self._result.deletes[layout.MODULES].append(name.encode())
        self._forget_usage_of_versions(name)
        if sequence is not None:
            self._postings.remove(sequence, terms)
            self._resequence(name, sequence, None)
        self._changes.append(self._changed(name, "unregistered", self._catalog.last_version(name) + 1))

    def _only_source_changed(self, stored: StoredModule, entry: Entry) -> bool:
        kept = stored.provenance
        is_the_same = (kept.version, kept.sequence) == (entry.version, entry.sequence)
        return is_the_same and (not entry.global_revision or encode(stored.info) == entry.encoded)

    def _make_room(self, name: str, version: int) -> None:
        """A version comes from a cluster: drop what this host counted itself from there on, and what is too old.

        A host's own declarations may have counted further than the cluster, and a host that was away misses versions.
        """
        labelled = labelled_versions(labels_after(self._draft, name).values())
        for kept in self._catalog.kept_versions(name):
            if not (version - layout.HISTORY_VERSIONS <= kept < version or (kept < version and kept in labelled)):
                key = layout.versioned_key(name, kept)
                self._forget_usage(key)
                self._result.deletes[layout.HISTORY].append(key)

    def _record(self, entry: Entry, revision: int, updated_at: int) -> bytes:
        kept = Provenance(entry.version, revision, updated_at, entry.sequence, entry.source, entry.by, entry.program)
        if entry.global_revision:
            kept = msgspec.structs.replace(kept, global_revision=entry.global_revision)
        return seal_record(entry.encoded, kept, self._format)

    def _put_record(self, entry: Entry, revision: int, updated_at: int) -> None:
        key = entry.info.name.encode()
        self._result.puts[layout.MODULES][key] = self._record(entry, revision, updated_at)

    def _keep_history(self, name: str, version: int, record: bytes) -> None:
        self._result.puts[layout.HISTORY][layout.versioned_key(name, version)] = record
        self._expire(name, version - layout.HISTORY_VERSIONS)

    def _expire(self, name: str, expired: int) -> None:
        """Drop a version from the history, unless a label names it."""
        if expired <= 0 or expired in labelled_versions(labels_after(self._draft, name).values()):
            return
        key = layout.versioned_key(name, expired)
        self._forget_usage(key)
        is_of_this_draft = self._result.puts[layout.HISTORY].pop(key, None) is not None
        if not is_of_this_draft and self._catalog.has_version(name, expired):
            self._result.deletes[layout.HISTORY].append(key)

    def _forget_usage(self, key: bytes) -> None:
        """The statistics of a version that is kept no longer."""
        if self._draft.usage.get(key) is not None or self._catalog.usage_row(key) is not None:
            self._expired_usage[key] = None

    def _forget_usage_of_versions(self, name: str) -> None:
        prefix = layout.versioned_prefix(name)
        staged = (key for key in self._draft.usage if key.startswith(prefix))
        for key in (*self._catalog.version_rows(name), *staged):
            self._forget_usage(key)

    def _log(self, name: str, stored: StoredModule | None, entry: Entry | None) -> None:
        action: Action = "unregistered"
        if entry is not None:
            version, source = entry.version, entry.source
            action = "updated" if stored is not None else "registered"
        else:
            dropped = self._draft.dropped.get(name, ())
            last = dropped[-1] if dropped else stored.provenance if stored else None
            version, source = (last.version, last.source) if last else (0, "")
        self._changes.append(self._changed(name, action, version, source))

    def _changed(self, name: str, action: Action, version: int, source: str = "") -> ModuleChange:
        return ModuleChange(name, action, version, self._draft.changed_by.get(name), source)

    # Indexes

    def _index(self, name: str, stored: StoredModule | None, entry: Entry | None) -> None:
        old = stored.provenance.sequence if stored else None
        new = entry.sequence if entry else None
        old_terms = terms(stored.info, self._old_words) if stored else ()
        new_terms = terms(entry.info, self._new_words) if entry else ()
        if old == new and old is not None:
            self._postings.replace(old, old_terms, new_terms)
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

    def _reindex_for_vocabulary(self) -> None:
        """Re-index modules outside the draft whose capabilities imply other words now than before."""
        if self._implications is None:
            return
        self._result.puts[layout.META][layout.META_VOCABULARY] = self._implications
        old, new = self._old_words, self._new_words
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

    def _programs(self) -> None:
        staged, result = self._draft.programs, self._result
        has_versions = any(
            result.puts.get(name) or result.deletes.get(name) for name in (layout.MODULES, layout.HISTORY)
        )
        if staged or (has_versions and self._catalog.has_programs):
            rows, gone, result.references = program_rows(staged, result.puts, result.deletes, self._catalog)
            result.puts[layout.PROGRAMS].update(rows)
            result.deletes[layout.PROGRAMS] += gone

    # Aliases, layers, log

    def _aliases(self) -> None:
        for alias, meaning in self._draft.aliases.meanings.items():
            before = self._catalog.alias(alias)
            if meaning != before:
                self._log_alias(alias, before, meaning)
                key = alias.encode()
                dumped = None if meaning is None else alias_codec.dump(meaning, key, self._format)
                self._put_or_delete(layout.ALIASES, key, dumped)
                self._keys[alias] = None

    def _log_alias(self, alias: str, before: Alias | None, after: Alias | None) -> None:
        source = after.source if after else before.source if before else ""
        old, new = (meaning.name if meaning else None for meaning in (before, after))
        self._alias_changes.append(AliasChange(alias, old, new, source, self._draft.aliases.by.get(alias)))

    def _policies(self) -> None:
        for (source, pattern), policy in self._draft.policies.items():
            key = layout.policy_key(source, pattern)
            if policy != self._catalog.policies.get((source, pattern)):
                value = None if policy is None else policy_codec.dump(policy, key, self._format)
                self._put_or_delete(layout.POLICIES, key, value)
                self._patterns[pattern] = None

    def _labels(self) -> None:
        for change, label in changed_labels(self._draft):
            key = layout.label_key(change.name, change.label)
            dumped = None
            if label is not None:
                stored = msgspec.structs.replace(label, by=change.by, revision=self._revision, updated_at=self._now)
                dumped = label_codec.dump(stored, key, self._format)
            self._put_or_delete(layout.LABELS, key, dumped)
            self._label_changes.append(change)
        for name, version in released_versions(self._draft):
            self._expire(name, version)

    def _layers(self) -> None:
        if self._draft.defaults is not None:
            rules = defaults_codec.dump(self._draft.defaults, layout.META_DEFAULTS, self._format)
            self._result.puts[layout.META][layout.META_DEFAULTS] = rules
        for name, layers in self._draft.layers.items():
            old = self._catalog.layers(name)
            for source in old.keys() - layers.keys():
                self._result.deletes[layout.LAYERS].append(layout.layer_key(name, source))
            for source, layer in layers.items():
                if source not in old or encode(old[source]) != encode(layer):  # as bytes: 1 is not True
                    key = layout.layer_key(name, source)
                    self._result.puts[layout.LAYERS][key] = layer_codec.dump(layer, key, self._format)

    def _conclude(self) -> None:
        """Make the change, its entry in the log, and the head, whose revision says whether it landed."""
        if not (self._changes or self._keys or self._postings or self._label_changes or self._patterns):
            return
        change = self._change()
        self._result.change = change
        key = layout.revision_key(change.revision)
        self._result.puts[layout.CHANGES][key] = change_codec.dump(change, key, self._format)
        state = State(change.revision, self._now, self._draft.next_sequence)
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
        for key, row in {**self._draft.usage, **self._expired_usage}.items():
            if row is None:
                self._result.deletes[layout.USAGE].append(key)
            else:
                self._result.puts[layout.USAGE][key] = row

    def _cluster(self) -> None:
        """What this host knows of global records, in the commit that shows them."""
        for key, row in self._draft.cluster.items():
            self._put_or_delete(layout.META, key, row)
        if self._draft.position is not None:
            self._put_or_delete(layout.META, layout.META_CLUSTER, self._draft.position or None)

    def _change(self) -> Change:
        by = tuple(self._draft.authors)
        if max(len(self._changes), len(self._label_changes)) > LARGEST_LISTED_CHANGE:
            return Change(self._revision, self._now, everything=True, by=by)
        terms = dict.fromkeys((*self._postings.terms, *((ALL,) if self._order else ())))
        names = (*(module.name for module in self._changes), *(label.name for label in self._label_changes))
        for name in dict.fromkeys(names):
            # A damaged alias may have meant any module, and a reader may still have it cached.
            aliases = (*self._catalog.aliases_of(name), *self._catalog.aliases_of(DAMAGED.name))
            for key in (*lookup_keys(name), *aliases):
                self._keys[key] = None
        return Change(
            self._revision,
            self._now,
            tuple(self._changes),
            tuple(self._keys),
            tuple(terms),
            by=by,
            policies=tuple(self._patterns),
            labels=tuple(self._label_changes),
            overrides=tuple(self._overrides),
            aliases=tuple(self._alias_changes[:LARGEST_LISTED_CHANGE]),
        )
