"""Global records: what the cluster has of a module, an alias, a vocabulary; and how one is put in force on this host.

A kind of record is a codec and a function that stages it on a draft. A record that a release does not know, or that
contradicts what this host itself declares, is set aside and reported: a mirror never refuses what the cluster accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.changes import Implications
from dspy_registry.registry_store.cluster_rows import GlobalRow, global_row_codec, row_key
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryError
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import ALIASES, META_ROLLOUT, META_VOCABULARY, MODULES, POLICIES
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.records import By, ModuleInfo
from dspy_registry.registry_store.rollout import Rollout
from dspy_registry.registry_store.rollout_rows import rollout_codec
from dspy_registry.registry_store.validation import validate_encoded
from dspy_registry.writer import overrides, policies
from dspy_registry.writer.cluster.keys import BATCHES, ROLLOUTS
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry

_decode_info = msgspec.msgpack.Decoder(ModuleInfo).decode


class GlobalModule(msgspec.Struct, frozen=True, array_like=True):
    """A module that clients registered. `info` is the encoded record; None: it is unregistered, `version` was its last.

    `order` is its place in the cluster's order of registration. `by` asked for the change, on the host that made it.
    `revision` is the global revision that showed it, where it is not the one that wrote the record (0): see `batches`.
    """

    version: int
    order: int
    info: bytes | None = None
    by: By | None = None
    revision: int = 0


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


class GlobalRollout(msgspec.Struct, frozen=True, array_like=True):
    """A guarded rollout of a label. None: it is forgotten."""

    rollout: Rollout | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of global record. `apply` stages one on a draft, `row` gives what the host keeps of it."""

    codec: SealedAlone
    apply: Callable[[Draft, str, Any, GlobalRow | None, int], None]
    row: Callable[[Any, int], GlobalRow]
    keeps_value: bool = False  # in its row: what it leads to may go and come on this host


def _apply_module(draft: Draft, name: str, module: GlobalModule, known: GlobalRow | None, revision: int) -> None:
    if module.info is None:
        withdraw(draft, name)
        return
    info, encoded = validate_encoded(_decode_info(module.info), is_registered=True)
    if info.name != name:
        raise CorruptRecordError(f"under {name} the cluster has the record of {info.name}.")
    entry = Entry(info, encoded, module.version, CLIENT, 0, (), module.by, b"", module.revision or revision)
    _adopt(draft, entry, is_new=known is not None and known.order != module.order)


def _adopt(draft: Draft, entry: Entry, *, is_new: bool) -> None:
    """Take over a client's module with its version. `is_new`: it was unregistered since this host saw it last.

    Then it goes to the end of the order, unless this host itself declares it, too.
    """
    name = entry.info.name
    current = draft.module(name)
    _drop_labels_beyond(draft, name, entry.version)
    is_clients = current is not None and current.source == CLIENT and not draft.layers_of(name)
    if current is not None and is_new and is_clients and current.encoded != entry.encoded:
        draft.unregister(name)
        current = None
    if current is None:
        draft.modules[name] = msgspec.structs.replace(entry, sequence=draft.take_sequence())
    else:
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


def _apply_rollout(draft: Draft, key: str, told: GlobalRollout, known: GlobalRow | None, revision: int) -> None:
    place = META_ROLLOUT + key.encode()
    row = None if told.rollout is None else rollout_codec.dump(told.rollout, place, draft.catalog.format)
    draft.rollouts[place] = row


def _module_row(module: GlobalModule, revision: int) -> GlobalRow:
    return GlobalRow(revision, module.version, module.order, module.info is not None)


KINDS: Final[dict[bytes, Kind]] = {
    MODULES: Kind(SealedAlone(GlobalModule, "a module of the cluster"), _apply_module, _module_row),
    ALIASES: Kind(
        SealedAlone(GlobalAlias, "an alias of the cluster"),
        _apply_alias,
        lambda meaning, revision: GlobalRow(revision, is_live=meaning.name is not None),
        keeps_value=True,
    ),
    POLICIES: Kind(
        SealedAlone(GlobalPolicy, "a policy of the cluster"),
        _apply_policy,
        lambda decided, revision: GlobalRow(revision, is_live=decided.policy is not None),
    ),
    ROLLOUTS: Kind(
        SealedAlone(GlobalRollout, "a rollout of the cluster"),
        _apply_rollout,
        lambda told, revision: GlobalRow(revision, is_live=told.rollout is not None),
    ),
    META_VOCABULARY: Kind(
        SealedAlone(GlobalWords, "the vocabulary of the cluster"),
        _apply_words,
        lambda vocabulary, revision: GlobalRow(revision, is_live=bool(vocabulary.words)),
    ),
}


def load_row(draft: Draft, key: bytes) -> GlobalRow | None:
    """What this host knows of a global record; None: nothing, or its row is damaged."""
    stored = draft.cluster_row(key)
    if stored is None:
        return None
    try:
        row: GlobalRow = global_row_codec.load(stored, key, draft.catalog.format)
    except CorruptRecordError:
        return None
    return row


def take_over(draft: Draft, kind: bytes, key: bytes, value: bytes, revision: int) -> str:
    """Stage a global record and its row. Returns why it was set aside; "": it is in force.

    The record before it stays in force when it is set aside.
    """
    place = row_key(kind, key)
    known = load_row(draft, place)
    if known is not None and known.revision > revision:  # a copy of a batch that came late: what came since stays
        return known.aside
    child = draft.child()
    try:
        of_kind = KINDS.get(kind)
        if kind == BATCHES:
            raise CorruptRecordError("a batch that is damaged or of another release. No module is changed from here.")
        if of_kind is None:
            raise CorruptRecordError(f"records of the kind {kind.decode('ascii', 'replace')} are of another release.")
        record = of_kind.codec.load(value)
        row = of_kind.row(record, revision)
        is_copy = kind == MODULES and known == msgspec.structs.replace(row, revision=known.revision if known else 0)
        if not is_copy:  # a version is given once, so its record is in force already
            of_kind.apply(child, key.decode(), record, known, revision)
        row = msgspec.structs.replace(row, value=value) if of_kind.keeps_value else row
    except (RegistryError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        reason = error.message if isinstance(error, RegistryError) else str(error)
        before = known or GlobalRow(0, is_live=False)
        row = msgspec.structs.replace(before, revision=revision, aside=reason[:500], value=value)
    else:
        draft.absorb(child)
    draft.cluster[place] = global_row_codec.dump(row, place, draft.catalog.format)
    return row.aside
