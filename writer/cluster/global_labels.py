"""Labels that clients set, and the versions that they name, as records of the cluster; and how a host takes them over.

The buckets of a label travel as they are, so that a key has one version on every host. A version that a label names and
that is not in force has a record of its own, put in the transaction that makes it necessary. Each host keeps it in the
row of that record too. So whenever a label comes into force, on whatever host, its versions can be put into the history
in the same commit (I8).
"""

from __future__ import annotations

import msgspec

from dspy_registry.registry_store.buckets import BUCKETS, MAX_VERSIONS, Run, shares
from dspy_registry.registry_store.cluster_rows import VERSIONS, GlobalRow, row_key
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import Label, label_problems
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import LAST_VERSION
from dspy_registry.registry_store.records import By, ModuleInfo
from dspy_registry.registry_store.validation import validate_encoded
from dspy_registry.writer.cluster.global_rows import load_row, split_part, stored_version, version_key
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry

_decode_info = msgspec.msgpack.Decoder(ModuleInfo).decode


class GlobalLabel(msgspec.Struct, frozen=True, array_like=True):
    """A label that clients set. `runs` are its buckets; None: it is removed. `by` asked for it."""

    runs: tuple[Run, ...] | None = None
    by: By | None = None


class GlobalVersion(msgspec.Struct, frozen=True, array_like=True):
    """A version that is not in force. `info` is the encoded record, `program` the digest of its program; empty: none.

    `revision` is the global revision that made the version; 0: the one that wrote this record.
    """

    version: int
    info: bytes
    by: By | None = None
    revision: int = 0
    program: bytes = b""


label_codec = SealedAlone(GlobalLabel, "a label of the cluster")
version_codec = SealedAlone(GlobalVersion, "a version of the cluster")


def drop_label(draft: Draft, name: str, label: str, by: By | None = None) -> None:
    """Drop a client's label, if it is there. What a manifest of this host declares comes back with its next look."""
    labels = draft.labels_of(name)
    current = labels.pop(label, None)
    if current is not None and current.source == CLIENT:
        draft.put_labels(name, labels, (label,))
        draft.label_authors[name, label] = by


def drop_labels(draft: Draft, name: str) -> None:
    """Drop all labels of a module that clients set."""
    for label in draft.labels_of(name):
        drop_label(draft, name, label, draft.by)


def apply_label(draft: Draft, key: str, record: GlobalLabel, known: GlobalRow | None, revision: int) -> None:
    """Put a global label in force, together with the versions that it names. Raises CorruptRecordError."""
    name, label = split_part(key)
    if record.runs is None:
        drop_label(draft, name, label, record.by)
        return
    refuse_malformed(label, record.runs)
    current = draft.module(name)
    if current is None or current.source != CLIENT:
        raise CorruptRecordError(f"{name} is no module of the cluster on this host.")
    for version in dict(record.runs):
        if version != current.version:
            _take_over_version(draft, name, version, current)
    labels = draft.labels_of(name)
    before = labels.get(label)
    if before is None or (before.runs, before.source) != (record.runs, CLIENT):
        labels[label] = Label(record.runs, CLIENT, record.by)
        draft.put_labels(name, labels, (label,))
        draft.label_authors[name, label] = record.by


def refuse_malformed(label: str, runs: tuple[Run, ...]) -> None:
    """Raises CorruptRecordError for a label that no writer of this release makes."""
    problems = list(label_problems(label))
    if sum(length for _, length in runs) != BUCKETS or any(length <= 0 for _, length in runs):
        problems.append(f"it does not have {BUCKETS} buckets")
    if not all(0 < version <= LAST_VERSION for version, _ in runs) or len(shares(runs)) > MAX_VERSIONS:
        problems.append("it names what is no version, or too many")
    if problems:
        raise CorruptRecordError(f"{label}: {'; '.join(problems)}.")


def _take_over_version(draft: Draft, name: str, version: int, current: Entry) -> None:
    """Stage a version that a label names, from its row. One that this draft replaces is there already."""
    if any(past.version == version and past.global_revision for past in current.past):
        return
    row = load_row(draft, row_key(VERSIONS, version_key(name, version)))
    if version < current.version and row is not None and row.value and not row.aside:
        record = version_codec.load(row.value)
        draft.versions.setdefault(name, {})[version] = entry_of(name, record, row.revision)
    elif version > current.version or not is_global(draft, name, version):
        raise CorruptRecordError(f"it names version {version}, which this host does not have of the cluster.")


def is_global(draft: Draft, name: str, version: int) -> bool:
    """Whether this host has stored a version as the cluster made it, in force or in its history."""
    stored = stored_version(draft.catalog, name, version)
    return stored is not None and bool(stored.provenance.global_revision)


def apply_version(draft: Draft, key: str, record: GlobalVersion, known: GlobalRow | None, revision: int) -> None:
    """Stage a version that the cluster keeps. The commit decides whether it is kept here. Raises CorruptRecordError."""
    name, digits = split_part(key)
    if digits != f"{record.version:010}":
        raise CorruptRecordError(f"under version {digits} of {name} the cluster has version {record.version}.")
    draft.versions.setdefault(name, {})[record.version] = entry_of(name, record, revision)


def entry_of(name: str, record: GlobalVersion, revision: int) -> Entry:
    """The entry of a version; `revision` wrote its record. Raises CorruptRecordError, InvalidModuleError."""
    info, encoded = validate_encoded(_decode_info(record.info), is_registered=True)
    if info.name != name:
        raise CorruptRecordError(f"under {name} the cluster has the record of {info.name}.")
    made_in = record.revision or revision
    return Entry(info, encoded, record.version, CLIENT, 0, (), record.by, record.program, made_in)


def label_row(record: GlobalLabel, revision: int) -> GlobalRow:
    """What a host keeps of a label."""
    return GlobalRow(revision, is_live=record.runs is not None)


def version_row(record: GlobalVersion, revision: int) -> GlobalRow:
    """What a host keeps of a version."""
    return GlobalRow(revision, record.version, program=record.program)
