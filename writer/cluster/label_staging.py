"""What a change does to the cluster's labels, and to the versions that the cluster keeps for them. Pure but for reads.

The rule is one: the cluster keeps the versions that its labels name and that are not in force, and those that came and
went within the change itself. A change that touches a name brings its versions in line with the rule. Where it cannot
remove all that is too much, a later change of the name does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from dspy_registry.registry_store.cluster_rows import VERSIONS, GlobalRow, row_key
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import (
    ClusterMembershipError,
    InvalidArgumentError,
    UnknownVersionError,
)
from dspy_registry.registry_store.labels import Label, LabelUpdate
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import LABELS
from dspy_registry.writer.cluster.global_labels import (
    GlobalLabel,
    GlobalVersion,
    drop_labels,
    label_codec,
    version_codec,
)
from dspy_registry.writer.cluster.global_rows import (
    label_rows,
    load_row,
    part_key,
    stored_version,
    version_key,
    version_rows,
)
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry
from dspy_registry.writer.labels import checked, set_labels

_REMOVED_AT_ONCE: Final = 24


@dataclass
class LabelChanges:
    """Values to put by kind and key; keys of versions to remove; names of which all versions are removed."""

    puts: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)
    removed: list[bytes] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def set_global_labels(draft: Draft, updates: Iterable[LabelUpdate]) -> None:
    """Stage a client's labels. What a manifest of this host declares counts as unset; it cannot be removed here.

    Raises what `set_labels` raises, and ClusterMembershipError for a label that this host could not take over.
    """
    found = checked(updates)
    for update in found:
        _refuse_aside(draft, update.name, update.label)
    set_labels(draft, [_as_global(draft, update) for update in found])


def _as_global(draft: Draft, update: LabelUpdate) -> LabelUpdate:
    current = draft.labels_of(update.name).get(update.label)
    if current is None or current.source == CLIENT or not current.source:
        return update
    if update.versions is None:
        raise InvalidArgumentError(
            f"{update.name}@{update.label} is declared by {current.source} on this host, and no client set it.",
            remedy="Remove it there.",
        )
    is_unset = update.expected == 0
    return LabelUpdate(update.name, update.label, update.versions, None if is_unset else update.expected)


def refuse_what_is_local(draft: Draft) -> None:
    """Raises for labels of clients, staged here, that cannot be the cluster's.

    InvalidArgumentError for a module that only this host declares, UnknownVersionError for a version that is of this
    host alone, ClusterMembershipError for a label or version that this host could not take over.
    """
    for name, label in _changed(draft):
        _refuse_aside(draft, name, label)
        named = draft.labels[name].get(label)
        if named is not None and named.source == CLIENT:
            _refuse_local_versions(draft, name, named)


def drop_global_labels(draft: Draft, name: str) -> None:
    """Stage that a module which the cluster no longer has loses its labels.

    Raises ClusterMembershipError when the cluster has a label of it that this host could not take over.
    """
    for label in label_rows(draft, name):
        _refuse_aside(draft, name, label)
    drop_labels(draft, name)


def _refuse_aside(draft: Draft, name: str, label: str) -> None:
    row = load_row(draft, row_key(LABELS, part_key(name, label)))
    if row is not None and row.aside:
        raise ClusterMembershipError(
            f"the cluster has a {name}@{label} that this host could not take over: {row.aside}",
            remedy="Change it on a host of the release that wrote it, or upgrade this one.",
        )


def _refuse_local_versions(draft: Draft, name: str, named: Label) -> None:
    current = draft.module(name)
    if current is None or current.source != CLIENT:
        raise InvalidArgumentError(
            f"{name} is declared by {current.source if current else 'nobody'} on this host alone, and a label of the "
            "cluster names versions of the cluster.",
            remedy="Declare the label in a manifest too, or register the module.",
        )
    for version in named.versions:
        if version != current.version and _version(draft, name, version) is None:
            kept = [one for one in draft.kept_versions(name) if _version(draft, name, one) is not None]
            raise UnknownVersionError(name, version, sorted({*kept, current.version}, reverse=True))


def label_changes(draft: Draft, touched: Iterable[str]) -> LabelChanges:
    """Read off a draft what is to be written of labels and versions. `touched` are modules that it changes globally."""
    found = LabelChanges()
    changed = list(_changed(draft))
    for name, label in changed:
        _label(draft, name, label, found)
    for name in dict.fromkeys((*touched, *(name for name, _ in changed))):
        _versions(draft, name, found)
    return found


def _changed(draft: Draft) -> Iterator[tuple[str, str]]:
    return ((name, label) for name, label in draft.label_authors if name in draft.labels)


def _label(draft: Draft, name: str, label: str, found: LabelChanges) -> None:
    after, by = draft.labels[name].get(label), draft.label_authors[name, label]
    row = label_rows(draft, name).get(label)
    is_live = row is not None and row.is_live
    record = None
    if after is not None and after.source == CLIENT:
        is_same = is_live and _runs(row) == after.runs
        record = None if is_same else GlobalLabel(after.runs, by)
    elif is_live:
        record = GlobalLabel(None, by)
    if record is not None:
        found.puts[LABELS, part_key(name, label)] = label_codec.dump(record)


def _runs(row: GlobalRow | None) -> object:
    return label_codec.load(row.value).runs if row is not None and row.value else None


def _versions(draft: Draft, name: str, found: LabelChanges) -> None:
    known = version_rows(draft, name)
    current = draft.module(name)
    if current is None or current.source != CLIENT:
        _gone(draft, name, found)
        if known:
            found.names.append(name)
        return
    wanted = _named(draft, name) - {current.version}
    past = {entry.version: entry for entry in current.past if entry.source == CLIENT}
    for version in sorted({*wanted, *past} - known.keys()):
        record = _version(draft, name, version)
        if record is not None:
            found.puts[VERSIONS, version_key(name, version)] = version_codec.dump(record)
    if not any(row.aside for row in (*known.values(), *label_rows(draft, name).values())):
        surplus = sorted(known.keys() - wanted - past.keys())
        room = max(0, _REMOVED_AT_ONCE - len(found.removed))
        found.removed += [version_key(name, version) for version in surplus[:room]]


def _gone(draft: Draft, name: str, found: LabelChanges) -> None:
    """A module that is no longer the cluster's has no labels there, whatever this host has in force of them."""
    for label, row in label_rows(draft, name).items():
        if row.is_live:
            record = label_codec.dump(GlobalLabel(None, draft.changed_by.get(name)))
            found.puts.setdefault((LABELS, part_key(name, label)), record)


def _named(draft: Draft, name: str) -> set[int]:
    """The versions that labels of clients name, as this draft leaves them."""
    labels = draft.labels_of(name).values()
    return {version for label in labels if label.source == CLIENT for version, _ in label.runs}


def _version(draft: Draft, name: str, version: int) -> GlobalVersion | None:
    """A version of the cluster, as this draft has it. None: this host does not have it, or it is of this host alone."""
    current = draft.module(name)
    for entry in (*current.past, current) if current is not None else ():
        if entry.version == version and entry.source == CLIENT:
            return _of_entry(entry)
    row = load_row(draft, row_key(VERSIONS, version_key(name, version)))
    if row is not None and row.value and not row.aside:
        record: GlobalVersion = version_codec.load(row.value)
        return record
    stored = stored_version(draft.catalog, name, version)
    if stored is None or not stored.provenance.global_revision:
        return None
    kept = stored.provenance
    return GlobalVersion(version, encode(stored.info), kept.by, kept.global_revision, kept.program)


def _of_entry(entry: Entry) -> GlobalVersion:
    return GlobalVersion(entry.version, entry.encoded, entry.by, entry.global_revision, entry.program)
