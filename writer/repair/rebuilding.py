"""The rows of a new registry, made of what could be read of a damaged one. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import (
    Alias,
    Change,
    Implications,
    State,
    alias_codec,
    change_codec,
    implications_codec,
    state_codec,
)
from dspy_registry.registry_store.codec import database_seal, encode, key_seal, seal, unseal
from dspy_registry.registry_store.errors import VocabularyError
from dspy_registry.registry_store.layers import (
    CLIENT,
    CORE,
    Defaults,
    Layer,
    defaults_codec,
    layer_codec,
    merge,
    with_defaults,
)
from dspy_registry.registry_store.names import terms
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, row_of, store_row
from dspy_registry.registry_store.postings import BitMap, block_of, store_block
from dspy_registry.registry_store.records import StoredModule, to_plain
from dspy_registry.registry_store.usage_rows import version_of_key
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS, Vocabulary
from dspy_registry.writer.repair import versions
from dspy_registry.writer.repair.account import Account
from dspy_registry.writer.repair.modules import Modules
from dspy_registry.writer.repair.reading import NEWEST, Found, Rows
from dspy_registry.writer.repair.soundness import past_record

_NEW: Final = layout.FORMAT_VERSION
_BACKUP: Final = "the backup"
_NOT_ON_PAGES: Final = "no page that can be read has it"


def rebuilt(found: Found, backup: Found, account: Account) -> dict[bytes, Rows]:
    """The rows of every database but `requests`, in the newest format; of `meta` without the identity.

    A stored answer is not taken over: what a client sends again is carried out again.
    """
    state = _state(found, account)
    modules = Modules(found, backup, state, account)
    implications, defaults = _declared_words(found, backup, account)
    vocabulary = Vocabulary.combined(implications)
    layers = _layers(modules, defaults, found, account)
    labels = versions.labels(found, modules, account)
    programs = versions.programs(found, backup, modules, account)
    _lose_unsound(layout.LABELS, found, labels, account)
    _lose_cluster(found, account)
    records, past = modules.rows()
    newest = max([state.revision, *(stored.provenance.revision for stored in modules.records.values())])
    head = State(newest, state.committed_at, modules.next_sequence)
    return {
        layout.META: {**_meta(head, implications, defaults), **_rollouts(found, account)},
        layout.MODULES: records,
        layout.HISTORY: past,
        layout.SEQUENCES: _sequences(modules.records),
        layout.POSTINGS: _postings(modules.records.values(), vocabulary),
        layout.LAYERS: layers,
        layout.ALIASES: _aliases(found, backup, modules, account),
        layout.CHANGES: _changes(head),
        layout.USAGE: _usage(found, modules, account),
        layout.LABELS: labels,
        layout.PROGRAMS: programs,
        layout.POLICIES: _policies(found, backup, account),
    }


# The head


def _state(found: Found, account: Account) -> State:
    """The head, or what the records, the history and the log show that it must have been."""
    stored = found.rows[layout.META].get(layout.META_STATE)
    if stored is not None:
        head: State = state_codec.load(stored, layout.META_STATE, found.format)
        return head
    account.lose(layout.META, layout.META_STATE, "the newest revision is the newest one that a record names")
    revisions = [int.from_bytes(key, "big") for key in found.rows[layout.CHANGES]]
    times = [0]
    for key, value in found.rows[layout.HISTORY].items():
        kept = past_record(key, value).provenance
        revisions.append(kept.revision)
        times.append(kept.updated_at)
    return State(max(revisions, default=1), max(times), 0)


def _declared_words(found: Found, backup: Found, account: Account) -> tuple[dict[str, Implications], Defaults]:
    words = _meta_value(found, backup, layout.META_VOCABULARY, implications_codec, account)
    implications: dict[str, Implications] = {CORE: dict(CORE_IMPLICATIONS)} if words is None else words
    try:
        Vocabulary.combined(implications)
    except VocabularyError as error:
        account.lose(layout.META, layout.META_VOCABULARY, f"it cannot be used: {error.message}")
        implications = {CORE: dict(CORE_IMPLICATIONS)}
    may_lack = layout.META_DEFAULTS not in found.rows[layout.META] and not found.lacks(layout.META)
    defaults = {} if may_lack else _meta_value(found, backup, layout.META_DEFAULTS, defaults_codec, account)
    return implications, defaults or {}


def _meta_value(found: Found, backup: Found, key: bytes, codec: Any, account: Account) -> Any:
    for source, origin in ((found, found.origin.get((layout.META, key), NEWEST)), (backup, _BACKUP)):
        value = source.rows[layout.META].get(key)
        if value is not None:
            if origin != NEWEST:
                account.took(layout.META, key, origin)
            return codec.load(value, key, source.format)
    if key == layout.META_VOCABULARY or (layout.META, key) in found.unsound:
        account.lose(layout.META, key, found.unsound.get((layout.META, key), _NOT_ON_PAGES))
    return None


def _rollouts(found: Found, account: Account) -> Rows:
    """As they are. None is taken from the backup: its label may have moved since."""
    rows = {key: row for key, row in found.rows[layout.META].items() if key.startswith(layout.META_ROLLOUT)}
    for key in rows:
        _tell_origin(account, layout.META, key, found.origin.get((layout.META, key), NEWEST))
    for (database, key), reason in found.unsound.items():
        if database == layout.META and key.startswith(layout.META_ROLLOUT):
            account.lose(database, key, reason)
    return rows


def _lose_cluster(found: Found, account: Account) -> None:
    """Rows of a cluster fit only the exact state that they were written with, and a repaired one may differ from it."""
    unsound = {key for database, key in found.unsound if database == layout.META}
    if any(key.startswith(layout.META_CLUSTER) for key in unsound | found.rows[layout.META].keys()):
        account.lose(layout.META, layout.META_CLUSTER, "the daemon joins the cluster again when it starts")


def _meta(head: State, implications: dict[str, Implications], defaults: Defaults) -> Rows:
    rows = {
        layout.META_FORMAT: b"%d" % _NEW,
        layout.META_STATE: state_codec.dump(head, layout.META_STATE, _NEW),
        layout.META_VOCABULARY: implications_codec.dump(implications, layout.META_VOCABULARY, _NEW),
    }
    if defaults:
        rows[layout.META_DEFAULTS] = defaults_codec.dump(defaults, layout.META_DEFAULTS, _NEW)
    return rows


def _changes(head: State) -> Rows:
    """A log that reaches back as far as any, and says of every commit that nothing before it may be relied on."""
    rows = {}
    for revision in range(max(1, head.revision - layout.CHANGES_KEPT + 1), head.revision + 1):
        key = layout.revision_key(revision)
        rows[key] = change_codec.dump(Change(revision, head.committed_at, everything=True), key, _NEW)
    return rows


# What is made of the records


def _sequences(records: dict[str, StoredModule]) -> Rows:
    names: dict[int, list[str]] = defaultdict(lambda: [GONE] * NAMES_PER_ROW)
    for name, stored in records.items():
        sequence = stored.provenance.sequence
        names[row_of(sequence)][sequence % NAMES_PER_ROW] = name
    keys = {number: layout.sequence_row_key(number) for number in names}
    return {keys[number]: store_row(row, keys[number], _NEW) or b"" for number, row in names.items()}


def _postings(records: Iterable[StoredModule], vocabulary: Vocabulary) -> Rows:
    blocks: dict[bytes, BitMap] = defaultdict(BitMap)
    for stored in records:
        sequence = stored.provenance.sequence
        for term in terms(stored.info, vocabulary):
            blocks[layout.posting_key(term.encode(), block_of(sequence))].add(sequence)
    return {key: store_block(block, key, _NEW) for key, block in blocks.items()}


# Layers


def _layers(modules: Modules, defaults: Defaults, found: Found, account: Account) -> Rows:
    rows = {}
    for name, declared in modules.layers.items():
        if name not in modules.records:
            continue
        for layer in _fitting(modules, name, declared, defaults).values():
            key = layout.layer_key(name, layer.source)
            rows[key] = layer_codec.dump(layer, key, _NEW)
    for name in modules.records.keys() - modules.layers.keys():
        for layer in _fitting(modules, name, {}, defaults).values():
            key = layout.layer_key(name, layer.source)
            rows[key] = layer_codec.dump(layer, key, _NEW)
    _lose_unsound(layout.LAYERS, found, rows, account)
    return rows


def _fitting(modules: Modules, name: str, declared: dict[str, Layer], defaults: Defaults) -> dict[str, Layer]:
    """Layers that make the record of a module that no client registered. Lost ones are made of the record."""
    stored = modules.records[name]
    source = stored.provenance.source
    layers = with_defaults(name, declared, defaults)
    if source == CLIENT or _makes(name, layers, stored):
        return layers
    fields = {field: value for field, value in to_plain(stored.info).items() if field != "name"}
    for others in (layers, {}):
        whole = with_defaults(name, {**others, source: Layer(source, fields)}, defaults)
        if _makes(name, whole, stored):
            return whole
    info, source = merge(name, whole.values())
    modules.records[name] = StoredModule(info, msgspec.structs.replace(stored.provenance, source=source))
    return whole


def _makes(name: str, layers: dict[str, Layer], stored: StoredModule) -> bool:
    if not layers:
        return False
    info, source = merge(name, layers.values())
    return source == stored.provenance.source and encode(info) == encode(stored.info)


# What stands beside the records


def _aliases(found: Found, backup: Found, modules: Modules, account: Account) -> Rows:
    rows: Rows = {}
    for source, key, value, origin in _candidates(layout.ALIASES, found, backup):
        if key in rows:
            continue
        meaning: Alias = alias_codec.load(value, key, source.format)
        if meaning.name in modules.records:
            rows[key] = alias_codec.dump(meaning, key, _NEW)
            _tell_origin(account, layout.ALIASES, key, origin)
        elif source is found:
            account.lose(layout.ALIASES, key, f"{meaning.name}, which it means, is lost")
    _lose_unsound(layout.ALIASES, found, rows, account)
    return rows


def _policies(found: Found, backup: Found, account: Account) -> Rows:
    rows: Rows = {}
    for source, key, value, origin in _candidates(layout.POLICIES, found, backup):
        if key not in rows:
            rows[key] = _sealed_again(layout.POLICIES, key, value, source.format)
            _tell_origin(account, layout.POLICIES, key, origin)
    _lose_unsound(layout.POLICIES, found, rows, account)
    return rows


def _candidates(database: bytes, found: Found, backup: Found) -> Iterator[tuple[Found, bytes, bytes, str]]:
    """(source, key, value, origin) of each row; of the backup those that may be lost. The first of a key counts."""
    for key, value in found.rows[database].items():
        yield found, key, value, found.origin.get((database, key), NEWEST)
    for key, value in backup.rows[database].items():
        if not found.is_whole(database) or (database, key) in found.unsound:
            yield backup, key, value, _BACKUP


def _tell_origin(account: Account, database: bytes, key: bytes, origin: str) -> None:
    if origin != NEWEST:
        account.took(database, key, origin)


def _usage(found: Found, modules: Modules, account: Account) -> Rows:
    """Statistics. Those of a version that has another number now, and those without their totals, mean nothing."""
    rows = {}
    for key, value in found.rows[layout.USAGE].items():
        of_version = version_of_key(key)
        if of_version and of_version[0].encode() not in found.rows[layout.USAGE]:
            account.lose(layout.USAGE, of_version, "the totals of its module are lost")
        elif of_version and of_version[1] >= modules.renumbered.get(of_version[0], layout.LAST_VERSION):
            account.lose(layout.USAGE, of_version, "its version has another number now")
        else:
            rows[key] = _sealed_again(layout.USAGE, key, value, found.format)
            _tell_origin(account, layout.USAGE, key, found.origin.get((layout.USAGE, key), NEWEST))
    _lose_unsound(layout.USAGE, found, rows, account)
    return rows


def _lose_unsound(database: bytes, found: Found, rows: Rows, account: Account) -> None:
    for (where, key), reason in found.unsound.items():
        if where == database and key not in rows:
            account.lose(database, _readable(database, key), reason)
    unnamed = min(found.unnamed(database), found.entries.get(database, 0) - len(rows))
    if unnamed > 0:
        why = "on pages that cannot be read" if database in found.broken else "that the database counts and no page has"
        account.lose(database, "", f"{unnamed} rows {why}")


def _readable(database: bytes, key: bytes) -> Any:
    return (version_of_key(key) if database == layout.USAGE else None) or key


def _sealed_again(database: bytes, key: bytes, value: bytes, format: int) -> bytes:
    start = database_seal(database)
    payload = unseal(value, "the row", key_seal(start, key, format))
    return seal(payload, key_seal(start, key, _NEW))


def counted(rows: dict[bytes, Rows]) -> Iterator[tuple[str, int]]:
    """How many rows each database has."""
    return ((database.decode(), len(held)) for database, held in rows.items())
