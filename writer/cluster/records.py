"""Global records: what the cluster has of a module, an alias, a vocabulary; and how one is put in force on this host.

A kind of record is a codec and a function that stages it on a draft. A record that a release does not know, or that
contradicts what this host itself declares, is set aside and reported: a mirror never refuses what the cluster accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.changes import Implications
from dspy_registry.registry_store.cluster_rows import VERSIONS, GlobalRow, global_row_codec, row_key
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryError
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import ALIASES, LABELS, META_VOCABULARY, MODULES, POLICIES
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.records import By, ModuleInfo
from dspy_registry.registry_store.validation import validate_encoded
from dspy_registry.writer import overrides, policies
from dspy_registry.writer.cluster.global_labels import (
    apply_label,
    apply_version,
    drop_labels,
    label_codec,
    label_row,
    version_codec,
    version_row,
)
from dspy_registry.writer.cluster.global_rollouts import apply_rollout, global_rollout_codec, rollout_row
from dspy_registry.writer.cluster.global_rows import load_row
from dspy_registry.writer.cluster.keys import BATCHES, ROLLOUTS
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry
from dspy_registry.writer.programs import carry_statistics

_decode_info = msgspec.msgpack.Decoder(ModuleInfo).decode


class GlobalModule(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A module that clients registered. `info` is the encoded record; None: it is unregistered, `version` was its last.

    `order` is its place in the cluster's order of registration. `by` asked for the change, on the host that made it.
    `revision` is the global revision that showed it, where it is not the one that wrote the record (0): see `batches`.
    `program` is the digest of its program; empty: it has none.
    """

    version: int
    order: int
    info: bytes | None = None
    by: By | None = None
    revision: int = 0
    program: bytes = b""


class GlobalAlias(msgspec.Struct, frozen=True, array_like=True):
    """An alias that clients set. `name` None: it is removed."""

    name: str | None = None
    by: By | None = None


class GlobalPolicy(msgspec.Struct, frozen=True, array_like=True):
    """What clients decide for a pattern. None: nothing."""

    policy: Policy | None = None


class GlobalWords(msgspec.Struct, frozen=True, array_like=True):
    """The implications that clients declare."""

    words: Implications = {}


@dataclass(frozen=True)
class Kind:
    """A kind of global record. `apply` stages one on a draft, `row` gives what the host keeps of it."""

    codec: SealedAlone
    apply: Callable[[Draft, str, Any, GlobalRow | None, int], None]
    row: Callable[[Any, int], GlobalRow]
    keeps_value: bool = False  # in its row: what it leads to may go and come on this host


class MissingProgramError(Exception):
    """A version names a program that this host has not fetched yet."""

    def __init__(self, digest: bytes) -> None:
        super().__init__(digest.hex())
        self.digest = digest


def _apply_module(draft: Draft, name: str, module: GlobalModule, known: GlobalRow | None, revision: int) -> None:
    if module.info is None:
        withdraw(draft, name)
        return
    info, encoded = validate_encoded(_decode_info(module.info), is_registered=True)
    if info.name != name:
        raise CorruptRecordError(f"under {name} the cluster has the record of {info.name}.")
    entry = Entry(info, encoded, module.version, CLIENT, 0, (), module.by, module.program, module.revision or revision)
    _adopt(draft, entry, is_new=known is not None and known.order != module.order)


def _adopt(draft: Draft, entry: Entry, *, is_new: bool) -> None:
    """Take over a client's module with its version. `is_new`: it was unregistered since this host saw it last.

    Then it goes to the end of the order, unless this host itself declares it, too.
    """
    name = entry.info.name
    current = draft.module(name)
    _drop_labels_beyond(draft, name, entry.version)
    is_clients = current is not None and current.source == CLIENT and not draft.layers_of(name)
    is_changed = current is not None and (current.encoded, current.program) != (entry.encoded, entry.program)
    if is_new and is_clients and is_changed:
        draft.unregister(name)
        current = None
    if current is None:
        draft.modules[name] = msgspec.structs.replace(entry, sequence=draft.take_sequence())
    else:
        if not is_new and not is_changed and current.version != entry.version:  # a program was published beside it
            carry_statistics(draft, name, current.version, entry.version)
        past = (*current.past, current) if draft.is_staged(name) else ()
        draft.modules[name] = msgspec.structs.replace(entry, sequence=current.sequence, past=past)
    draft.changed_by[name] = entry.by


def _drop_labels_beyond(draft: Draft, name: str, version: int) -> None:
    """Labels that name versions which this host itself counted beyond the cluster's: those versions go."""
    labels = draft.labels_of(name)
    broken = [label for label, named in labels.items() if max(named.versions, default=0) > version]
    if broken:
        draft.put_labels(name, {label: named for label, named in labels.items() if label not in broken}, broken)


def withdraw(draft: Draft, name: str) -> None:
    """A client's record is gone. What this host itself declares of the module comes into force."""
    current = draft.module(name)
    if current is None or current.source != CLIENT:
        return
    if draft.layers_of(name):
        overrides.release(draft, name)
        drop_labels(draft, name)
    else:
        draft.unregister(name)


def _apply_alias(draft: Draft, alias: str, meaning: GlobalAlias, known: GlobalRow | None, revision: int) -> None:
    if meaning.name is not None:
        draft.set_alias(alias, meaning.name)
        return
    current = draft.alias(alias)
    if current is not None and current.source == CLIENT:
        draft.remove_alias(alias)


def _apply_policy(draft: Draft, pattern: str, decided: GlobalPolicy, known: GlobalRow | None, revision: int) -> None:
    policies.set_policy(draft, pattern, decided.policy)


def _apply_words(draft: Draft, key: str, vocabulary: GlobalWords, known: GlobalRow | None, revision: int) -> None:
    draft.set_implications(CLIENT, vocabulary.words)


def _module_row(module: GlobalModule, revision: int) -> GlobalRow:
    return GlobalRow(revision, module.version, module.order, module.info is not None, program=module.program)


KINDS: Final[dict[bytes, Kind]] = {
    MODULES: Kind(SealedAlone(GlobalModule, "a module of the cluster"), _apply_module, _module_row),
    ALIASES: Kind(
        SealedAlone(GlobalAlias, "an alias of the cluster"),
        _apply_alias,
        lambda meaning, revision: GlobalRow(revision, is_live=meaning.name is not None),
        keeps_value=True,
    ),
    VERSIONS: Kind(version_codec, apply_version, version_row, keeps_value=True),
    LABELS: Kind(label_codec, apply_label, label_row, keeps_value=True),
    POLICIES: Kind(
        SealedAlone(GlobalPolicy, "a policy of the cluster"),
        _apply_policy,
        lambda decided, revision: GlobalRow(revision, is_live=decided.policy is not None),
    ),
    ROLLOUTS: Kind(global_rollout_codec, apply_rollout, rollout_row),
    META_VOCABULARY: Kind(
        SealedAlone(GlobalWords, "the vocabulary of the cluster"),
        _apply_words,
        lambda vocabulary, revision: GlobalRow(revision, is_live=bool(vocabulary.words)),
    ),
}


def take_over(
    draft: Draft,
    kind: bytes,
    key: bytes,
    value: bytes,
    revision: int,
    lost: Collection[bytes] = frozenset(),
    module: GlobalModule | None = None,
) -> str:
    """Stage a global record and its row. Returns why it was set aside; "": it is in force.

    `module` is the value, where it is a module's that is decoded already; None: it is decoded here. The record before
    it stays in force when it is set aside. Raises MissingProgramError for a program that this host does not have,
    unless it is one of those that are `lost`: the cluster does not have them whole.
    """
    place = row_key(kind, key)
    known = load_row(draft, place)
    if known is not None and known.revision > revision:  # a copy of a batch that came late: what came since stays
        return known.aside
    child = draft if known is None and _is_nothing_here(draft, kind, key) else draft.child()
    try:
        of_kind = KINDS.get(kind)
        if kind == BATCHES:
            raise CorruptRecordError("a batch that is damaged or of another release. No module is changed from here.")
        if of_kind is None:
            raise CorruptRecordError(f"records of the kind {kind.decode('ascii', 'replace')} are of another release.")
        record = module or of_kind.codec.load(value)
        row = of_kind.row(record, revision)
        is_copy = known is not None and kind == MODULES and known == _as_of(row, known.revision)
        _need_program(draft, row.program, lost)
        if not is_copy:  # a version is given once, so its record is in force already
            of_kind.apply(child, key.decode(), record, known, revision)
        row = msgspec.structs.replace(row, value=value) if of_kind.keeps_value else row
    except (RegistryError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = error.message if isinstance(error, RegistryError) else str(error)
        before = known or GlobalRow(0, is_live=False)
        row = msgspec.structs.replace(before, revision=revision, aside=reason[:500], value=value)
    else:
        if child is not draft:
            draft.absorb(child)
    draft.cluster[place] = global_row_codec.dump(row, place, draft.catalog.format)
    return row.aside


def _as_of(row: GlobalRow, revision: int) -> GlobalRow:
    return msgspec.structs.replace(row, revision=revision)


def _is_nothing_here(draft: Draft, kind: bytes, key: bytes) -> bool:
    """Whether a record is of a module that this host has nothing of. Then staging it fails before it changes a draft.

    So it needs no draft of its own: it is checked first, and put last. A new host has nothing of any module.
    """
    if kind != MODULES:
        return False
    try:
        name = key.decode()
        return draft.module(name) is None and not draft.labels_of(name)
    except (RegistryError, UnicodeDecodeError):
        return False


def _need_program(draft: Draft, digest: bytes, lost: Collection[bytes]) -> None:
    if not digest or draft.has_program(digest):
        return
    if digest not in lost:
        raise MissingProgramError(digest)
    raise CorruptRecordError(f"it names the program {digest.hex()[:12]}, which the cluster does not have whole.")
