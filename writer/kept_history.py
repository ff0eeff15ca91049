"""Which versions a commit keeps: the last HISTORY_VERSIONS that were replaced, and every one that a label names (I8).

A commit that adds a version drops what is too old then, in the same commit. Versions follow each other on one host, so
one version leaves as one comes. A host of a cluster that was away skips some: behind a gap all kept ones are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.codec import encode, seal_record
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import Label, labelled_versions
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.records import Provenance, StoredModule
from dspy_registry.registry_store.selection import decode_version
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry
from dspy_registry.writer.operations import Operations

_WINDOW: Final = layout.HISTORY_VERSIONS


class KeptHistory:
    """The rows of the history in one pass over a draft. `expired_usage` has the keys of statistics that go too."""

    def __init__(self, draft: Draft, result: Operations) -> None:
        self._draft = draft
        self._catalog: Catalog = draft.catalog
        self._result = result
        self._added: dict[str, list[int]] = {}
        self.expired_usage: dict[bytes, None] = {}

    def labels_after(self, name: str) -> dict[str, Label]:
        """The labels of a module as this draft leaves them."""
        staged = self._draft.labels.get(name)
        return self._catalog.labels(name) if staged is None else staged

    def make_room(self, name: str, version: int) -> None:
        """A version comes from a cluster: drop what this host counted itself from there on, and what is too old.

        A host's own declarations may have counted further than the cluster, and a host that was away misses versions.
        """
        if not self._catalog.has_history:  # as on a new host, which takes over everything
            return
        outside = self._catalog.kept_versions(name, range(version - _WINDOW, version))
        labelled = self._labelled(name) if outside else ()
        for kept in outside:
            if not (kept < version and kept in labelled):
                key = layout.versioned_key(name, kept)
                self._forget_usage(key)
                self._result.deletes[layout.HISTORY].append(key)

    def keep(self, name: str, version: int, record: bytes, in_force: int) -> None:
        """Keep a version that was replaced, newer than all that are kept, and drop what is too old now.

        `in_force` is the version behind it, 0: the module is gone. What came long before that one is not kept at all,
        nor what this host has counted beyond a cluster's version.
        """
        is_too_old = version < in_force - _WINDOW and version not in self._labelled(name)
        if is_too_old or 0 < in_force <= version:
            self._forget_usage(layout.versioned_key(name, version))
            return
        is_behind_gap = version > 1 and not self._is_kept(name, version - 1)
        self._result.puts[layout.HISTORY][layout.versioned_key(name, version)] = record
        self._added.setdefault(name, []).append(version)
        if not is_behind_gap:
            self._expire(name, version - _WINDOW)
            return
        for kept in (*self._catalog.kept_versions(name), *self._added[name]):
            if kept <= version - _WINDOW:
                self._expire(name, kept)

    def close_window(self, name: str, before: Mapping[str, Label], after: Mapping[str, Label]) -> None:
        """Drop the versions that labels named `before` and name no longer, where they are too old."""
        for version in labelled_versions(before.values()) - labelled_versions(after.values()):
            if version <= self._newest_past(name) - _WINDOW:
                self._expire(name, version)

    def take_over(self, revision: int, now: int) -> list[str]:
        """Keep the versions that a cluster brought beside those in force: labels name them, or they are of late.

        Call it when all else of the history is decided. A record that this host counted itself gives way. Returns the
        names of modules of which a version is another one now.
        """
        changed = []
        for name, versions in self._draft.versions.items():
            current = self._draft.module(name)
            if current is None or current.source != CLIENT:
                continue
            labelled = self._labelled(name)
            for version, entry in versions.items():
                is_of_late = current.version - _WINDOW <= version
                if version < current.version and (version in labelled or is_of_late):
                    placed = msgspec.structs.replace(entry, sequence=current.sequence)
                    if self._take_over(name, placed, revision, now):
                        changed.append(name)
        return changed

    def _take_over(self, name: str, entry: Entry, revision: int, now: int) -> bool:
        key = layout.versioned_key(name, entry.version)
        stored = self._stored(key, name, entry.version)
        is_same = stored is not None and _is_same(stored, entry)
        if stored is not None and is_same:
            if stored.provenance.global_revision == entry.global_revision and not self._is_dropped(key):
                return False
            revision, now = stored.provenance.revision, stored.provenance.updated_at
        elif stored is not None:
            self._forget_usage(key)
        self._result.puts[layout.HISTORY][key] = record_of(entry, revision, now, self._catalog.format)
        return not is_same

    def _stored(self, key: bytes, name: str, version: int) -> StoredModule | None:
        """A version as this commit leaves it so far, or else as it is stored. None: nothing that can be read."""
        record = self._result.puts[layout.HISTORY].get(key) or self._catalog.row(layout.HISTORY, key)
        try:
            return None if record is None else decode_version(record, name, version)
        except CorruptRecordError:
            return None

    def _is_dropped(self, key: bytes) -> bool:
        rows = self._result
        return key in rows.deletes[layout.HISTORY] and key not in rows.puts[layout.HISTORY]

    def forget_usage_of_versions(self, name: str) -> None:
        """The statistics of all versions of a module that is gone."""
        prefix = layout.versioned_prefix(name)
        staged = (key for key in self._draft.usage if key.startswith(prefix))
        for key in (*self._catalog.version_rows(name), *staged):
            self._forget_usage(key)

    def _forget_usage(self, key: bytes) -> None:
        """The statistics of a version that is kept no longer."""
        if self._draft.usage.get(key) is not None or self._catalog.usage_row(key) is not None:
            self.expired_usage[key] = None

    def _labelled(self, name: str) -> set[int]:
        return labelled_versions(self.labels_after(name).values())

    def _is_kept(self, name: str, version: int) -> bool:
        return version in self._added.get(name, ()) or self._catalog.has_version(name, version)

    def _expire(self, name: str, expired: int) -> None:
        """Drop a version from the history, unless a label names it."""
        if expired <= 0 or expired in self._labelled(name):
            return
        key = layout.versioned_key(name, expired)
        self._forget_usage(key)
        if self._result.puts[layout.HISTORY].pop(key, None) is None:  # it is not of this draft
            self._result.deletes[layout.HISTORY].append(key)

    def _newest_past(self, name: str) -> int:
        """The newest version of a module in the history, after this draft. 0: there is none."""
        entry = self._draft.module(name)
        if entry is not None:
            return entry.version - 1
        past = self._draft.dropped.get(name, ())
        stored = self._catalog.module(name)
        return past[-1].version if past else stored.provenance.version if stored else self._catalog.last_version(name)


def record_of(entry: Entry, revision: int, updated_at: int, format: int) -> bytes:
    """The record of a version, changed in a revision of this registry at a time in milliseconds since the epoch."""
    kept = Provenance(entry.version, revision, updated_at, entry.sequence, entry.source, entry.by, entry.program)
    if entry.global_revision:
        kept = msgspec.structs.replace(kept, global_revision=entry.global_revision)
    return seal_record(entry.encoded, kept, format)


def _is_same(stored: StoredModule, entry: Entry) -> bool:
    return (encode(stored.info), stored.provenance.program) == (entry.encoded, entry.program)
