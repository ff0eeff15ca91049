"""The committed registry, read through the write transaction. It decides nothing and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Final

from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.changes import Alias, Implications, State, alias_codec, implications_codec
from dspy_registry.registry_store.codec import decode_record, key_text, open_record
from dspy_registry.registry_store.errors import AmbiguousNameError, CorruptRecordError, UnknownModuleError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.labels import Label, label_codec, labels_of
from dspy_registry.registry_store.layers import DISCOVERED, Defaults, Layer, defaults_codec, layer_codec
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, load_names, load_row, row_of
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.policy_rows import load_rows
from dspy_registry.registry_store.postings import BitMap, block_of, load_block, load_posting, stored_blocks
from dspy_registry.registry_store.program_rows import is_stored, keys_of, load_program, program_of, stored_digests
from dspy_registry.registry_store.records import Provenance, StoredModule
from dspy_registry.registry_store.scan import items_with_prefix, value_at
from dspy_registry.registry_store.selection import kept_versions, load_version, past_records
from dspy_registry.registry_store.usage_rows import version_of_key
from dspy_registry.registry_store.vocabulary import Vocabulary
from dspy_registry.writer.aliases import AliasIndex, meaning_of
from dspy_registry.writer.classes import ClassIndex
from dspy_registry.writer.known import Known
from dspy_registry.writer.program_index import ProgramIndex

_MODULES_KEPT: Final = 256


class Catalog:
    """Reads of one transaction. `aliases`, `classes` and `programs` are indexes of earlier commits; None: new ones.

    `known` is what the writer remembers from its last commit; None: nothing.
    """

    def __init__(
        self,
        txn: Transaction,
        dbs: Databases,
        aliases: AliasIndex | None = None,
        classes: ClassIndex | None = None,
        programs: ProgramIndex | None = None,
        known: Known | None = None,
    ) -> None:
        self._txn = txn
        self._dbs = dbs
        self._modules: dict[str, StoredModule | None] = {}  # those read last: staging and `apply` read the same ones
        self._last_read: tuple[str, bytes | None] = ("", None)  # and its bytes: all could be too many to keep
        self._alias_index = aliases or AliasIndex()
        self._class_index = classes or ClassIndex()
        self._program_index = programs or ProgramIndex()
        self._filled = {} if known is None else known.filled
        self.format = dbs.format
        self.state: State = (known and known.state) or lookup.load_state(txn, dbs)

    has_history = property(lambda self: self._has_entries(layout.HISTORY))
    has_layers = property(lambda self: self._has_entries(layout.LAYERS))
    has_programs = property(lambda self: self._has_entries(layout.PROGRAMS))
    has_labels = property(lambda self: self._has_entries(layout.LABELS))
    has_usage = property(lambda self: self._has_entries(layout.USAGE))

    @property
    def dbs(self) -> Databases:
        """The databases that it reads."""
        return self._dbs

    def _has_entries(self, name: bytes) -> bool:
        found = self._filled.get(name)
        if found is None:
            database = getattr(self._dbs, name.decode())
            found = self._filled[name] = database is not None and self._txn.stat(database)["entries"] > 0
        return found

    def module(self, name: str) -> StoredModule | None:
        """The stored module of this full name, or None. Raises CorruptRecordError."""
        if name in self._modules:
            return self._modules[name]
        value = self._txn.get(name.encode(), None, self._dbs.modules) if name else None  # LMDB refuses an empty key
        found = None if value is None else open_record(value, name)
        if len(self._modules) >= _MODULES_KEPT:
            self._modules.clear()
        self._modules[name], self._last_read = found, (name, value)
        return found

    def record(self, name: str) -> bytes:
        """The stored bytes of a module that exists."""
        last, value = self._last_read
        return self._txn.get(name.encode(), None, self._dbs.modules) if last != name or value is None else value

    def last_version(self, name: str) -> int:
        """The highest version of a module that is no longer registered. 0: it never was registered."""
        return next((version for version, _ in past_records(self._txn, self._dbs, name)), 0)

    def indexed_parts(self, name: str) -> tuple[int | None, list[str]]:
        """The sequence and the terms of a module whose record cannot be read. Reads all indexes."""
        sequence = next((sequence for sequence, named in self._order() if named == name), None)
        if sequence is None:
            return None, []
        terms = []
        for place, value in self._txn.cursor(self._dbs.postings):
            split = layout.split_posting_key(place)
            if (
                split is not None
                and split[1] == block_of(sequence)
                and sequence in load_block(value, place, self.format)
            ):
                terms.append(key_text(split[0]))
        return sequence, terms

    def _order(self) -> Iterator[tuple[int, str]]:
        """(sequence, name) of every row that can be read."""
        for key, value in self._txn.cursor(self._dbs.sequences):
            with suppress(CorruptRecordError):
                yield from enumerate(load_row(value, key, self.format), int.from_bytes(key, "big") * NAMES_PER_ROW)

    def names_in_row(self, number: int) -> list[str]:
        """The names of a row of sequences, GONE where there is no module. A copy, of the full length."""
        key = layout.sequence_row_key(number)
        value = self._txn.get(key, None, self._dbs.sequences)
        if value is None:
            return [GONE] * NAMES_PER_ROW
        try:
            names = load_row(value, key, self.format)
        except CorruptRecordError:
            return self._names_from_records(number)
        return names + [GONE] * (NAMES_PER_ROW - len(names))

    def _names_from_records(self, number: int) -> list[str]:
        """A damaged row, rebuilt: each record holds its sequence. Reads all records."""
        names = [GONE] * NAMES_PER_ROW
        for key, value in self._txn.cursor(self._dbs.modules):
            with suppress(CorruptRecordError):
                stored = decode_record(value, "a module")
                if row_of(stored.provenance.sequence) == number:
                    names[stored.provenance.sequence % NAMES_PER_ROW] = key_text(key)
        return names

    def has_version(self, name: str, version: int) -> bool:
        """Whether this version is kept in the history."""
        key = layout.versioned_key(name, version)
        return self._txn.get(key, None, self._dbs.history) is not None

    def row(self, database: bytes, key: bytes) -> bytes | None:
        """The stored bytes of a row, or None."""
        value: bytes | None = self._txn.get(key, None, getattr(self._dbs, database.decode()))
        return value

    # Programs

    def has_program(self, digest: bytes) -> bool:
        """Whether the document of this digest is stored."""
        return self.has_programs and is_stored(self._txn, self._dbs, digest)

    def has_whole_program(self, digest: bytes) -> bool:
        """Whether the document of this digest is stored and intact. Reads all of it."""
        if not self.has_program(digest):
            return False
        with suppress(CorruptRecordError):
            return bool(load_program(self._txn, self._dbs, digest))
        return False

    def past_versions(self, name: str) -> Iterator[StoredModule]:
        """The replaced versions of a full name that can be read, newest first."""
        for _, record in past_records(self._txn, self._dbs, name):
            with suppress(CorruptRecordError):
                yield open_record(record, name)

    def program_keys(self, digest: bytes) -> list[bytes]:
        """The keys of all rows of a document."""
        return keys_of(self._txn, self._dbs, digest)

    def program_references(self) -> Mapping[bytes, int]:
        """How many kept versions name each document, by digest; 0: none does."""
        if not self.has_programs:
            return {}
        index = self._program_index
        return index.references(self.state.revision, self._named_programs, self._stored_programs)

    def forget_program_references(self) -> None:
        """Read them again: a damaged record is replaced, and it is not known what it named."""
        self._program_index.forget()

    def _named_programs(self) -> Iterator[bytes]:
        for database in (self._dbs.modules, self._dbs.history):
            yield from filter(None, (program_of(record) for _, record in self._txn.cursor(database)))

    def _stored_programs(self) -> Iterator[bytes]:
        return stored_digests(self._txn, self._dbs)

    # Labels and layers

    def past_version(self, name: str, version: int) -> StoredModule:
        """A version of a registered module. Raises UnknownVersionError, CorruptRecordError."""
        return load_version(self._txn, self._dbs, name, version)

    def labels(self, name: str) -> dict[str, Label]:
        """The labels of a module. Damaged ones name nothing: they can be set again or removed."""
        return labels_of(self._txn, self._dbs, name, are_damages_told=False) if self.has_labels else {}

    def labels_from(self, source_prefix: str) -> Iterator[tuple[str, str, Label]]:
        """(name, label, what it names) of every label that can be read and whose source begins with `source_prefix`."""
        for key, value in items_with_prefix(self._txn, self._dbs.labels, b""):
            with suppress(CorruptRecordError):
                found = label_codec.load(value, key, self.format)
                if found.source.startswith(source_prefix):
                    name, _, label = key_text(key).partition("\0")
                    yield name, label, found

    def layers(self, name: str) -> dict[str, Layer]:
        """By source, the fields that sources other than clients declare of a module."""
        if not self.has_layers:
            return {}
        prefix = name.encode() + b"\0"
        return {layer.source: layer for _, layer in self._layers_from(prefix)}

    def layers_from(self, source_prefix: str) -> Iterator[tuple[str, Layer]]:
        """(name, layer) of every layer whose source begins with `source_prefix`."""
        for name, layer in self._layers_from(b""):
            if layer.source.startswith(source_prefix):
                yield name, layer

    def name_of_class(self, place: str) -> str | None:
        """The name that discovery registered a class by. None: it found none defined there, or several."""
        if not self._class_index.is_read:
            self._class_index.read(self._discovered())
        return self._class_index.name_of(place)

    def _discovered(self) -> Iterator[tuple[str, Layer]]:
        """(name, layer) of every discovered module whose layer can be read."""
        ending = layout.layer_key("", DISCOVERED)
        for key, value in self._txn.cursor(self._dbs.layers):
            if key.endswith(ending):
                with suppress(CorruptRecordError):
                    yield key_text(key[: -len(ending)]), layer_codec.load(value, key, self.format)

    def _layers_from(self, prefix: bytes) -> Iterator[tuple[str, Layer]]:
        for key, value in items_with_prefix(self._txn, self._dbs.layers, prefix):
            yield key_text(key.split(b"\0", 1)[0]), layer_codec.load(value, key, self.format)

    def alias(self, alias: str) -> Alias | None:
        """What an alias means: None when it is not declared, DAMAGED when it cannot be read."""
        key = alias.encode()
        value = self._txn.get(key, None, self._dbs.aliases)
        return None if value is None else meaning_of(value, key, self.format)

    def aliases_of(self, name: str) -> Collection[str]:
        """The aliases of a module. The name "" gives the damaged aliases."""
        return self._alias_index.of(name, self.state.revision, self._meanings)

    def _meanings(self) -> Iterator[tuple[str, Alias]]:
        """Those of which the key is text. Another one is damage that nobody can ask for, and `check` names it."""
        for key, value in self._txn.cursor(self._dbs.aliases):
            with suppress(CorruptRecordError):
                yield key_text(key), meaning_of(value, key, self.format)

    def aliases(self) -> dict[str, Alias]:
        """All declared aliases: reads every one. Raises CorruptRecordError."""
        rows = self._txn.cursor(self._dbs.aliases)
        return {key_text(key): alias_codec.load(value, key, self.format) for key, value in rows}

    @property
    def alias_count(self) -> int:
        """How many aliases there are."""
        return int(self._txn.stat(self._dbs.aliases)["entries"])

    def implications(self) -> dict[str, Implications]:
        """Capability implications, by source."""
        stored = self._txn.get(layout.META_VOCABULARY, None, self._dbs.meta)
        implications: dict[str, Implications] = implications_codec.load(stored, layout.META_VOCABULARY, self.format)
        return implications

    @cached_property
    def defaults(self) -> Defaults:
        """The rules for discovered modules, by source."""
        stored = self._txn.get(layout.META_DEFAULTS, None, self._dbs.meta)
        return {} if stored is None else defaults_codec.load(stored, layout.META_DEFAULTS, self.format)

    @cached_property
    def policies(self) -> dict[tuple[str, str], Policy]:
        """All policies, by source and pattern. Raises CorruptRecordError."""
        return load_rows(self._txn, self._dbs)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of all sources together."""
        return lookup.vocabulary_of(self._txn.get(layout.META_VOCABULARY, None, self._dbs.meta), self.format)

    def records(self) -> Iterator[tuple[bytes, bytes]]:
        """(name, stored bytes) of every module."""
        return items_with_prefix(self._txn, self._dbs.modules, b"")

    def cluster_row(self, key: bytes) -> bytes | None:
        """What is known of a global record, by its key in `meta`, or None."""
        return value_at(self._txn, self._dbs.meta, key)

    def cluster_rows(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of each row of `meta`, as of a global record, whose key begins with `prefix`."""
        return items_with_prefix(self._txn, self._dbs.meta, prefix)

    @property
    def position(self) -> bytes | None:
        """How far this host has followed a cluster, as stored. None: it belongs to none."""
        return value_at(self._txn, self._dbs.meta, layout.META_CLUSTER)

    def kept_versions(self, name: str, but: range = range(0)) -> list[int]:
        """The versions in the history of this full name, newest first; without those of `but`, which are not read."""
        return kept_versions(self._txn, self._dbs, name, but)

    def usage_row(self, key: bytes) -> bytes | None:
        """The row of `usage` under a key, or None."""
        row: bytes | None = self._txn.get(key, None, self._dbs.usage) if self.has_usage else None
        return row

    def usage_rows(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(key, value) of each row of `usage` whose key begins with `prefix`."""
        return items_with_prefix(self._txn, self._dbs.usage, prefix)

    def unregistered_usage(self, enough: int) -> int:
        """About how many rows of `usage` are of unregistered modules. Below 0: some modules have no row.

        Rows of versions are told apart, which reads every key, only where the answer would be above `enough`.
        """
        rows, modules = (self._txn.stat(database)["entries"] for database in (self._dbs.usage, self._dbs.modules))
        if rows - modules > enough:
            keys = self._txn.cursor(self._dbs.usage).iternext(keys=True, values=False)
            rows -= sum(version_of_key(key) is not None for key in keys)
        return int(rows - modules)

    def version_rows(self, name: str) -> list[bytes]:
        """The keys of the rows of `usage` of all versions of this full name."""
        return [key for key, _ in self.usage_rows(layout.versioned_prefix(name)) if version_of_key(key) is not None]

    def is_kept(self, name: str, version: int) -> bool:
        """Whether a version of a registered module is in force or in its history."""
        current = self._in_force(name)
        return current is not None and (version == current.version or self.has_version(name, version))

    def version_at(self, name: str, time: int) -> int:
        """The version of a module that was in force at a time, in milliseconds since the epoch. 0: it is not known.

        What was called before version 1 was registered counts as version 1.
        """
        current = self._in_force(name)
        if current is None:
            return 0
        found = current if current.updated_at <= time else self._past_at(name, time, current)
        return found.version if found.updated_at <= time or found.version == 1 else 0

    def _in_force(self, name: str) -> Provenance | None:
        """What is kept of the version in force. None: the module is not registered, or its record is damaged."""
        try:
            stored = self.module(name)
        except CorruptRecordError:
            return None
        return None if stored is None else stored.provenance

    def _past_at(self, name: str, time: int, current: Provenance) -> Provenance:
        """The version that was in force at a time, else the oldest one that is kept."""
        found = current
        after = current.version
        for version, record in past_records(self._txn, self._dbs, name):
            if found.updated_at <= time or version != after - 1:  # a gap: only labels keep what is older
                break
            after = version
            with suppress(CorruptRecordError):
                found = open_record(record, name).provenance
        return found

    def registered_name(self, asked: str) -> str | None:
        """The full name of the one registered module that `asked` means. None: it means no module, or several.

        What follows an @ is left out.
        """
        try:
            found = lookup.resolve_selector(self._txn, self._dbs, asked)
        except AmbiguousNameError:
            return None
        return found[0] if found else None

    def unknown(self, asked: object) -> UnknownModuleError:
        """The error for a name that no module has, with the closest known names."""
        return lookup.unknown(self._txn, self._dbs, asked)

    def block(self, key: bytes) -> BitMap:
        """The block of a posting under this key. Empty when it is not stored."""
        value = self._txn.get(key, None, self._dbs.postings)
        return BitMap() if value is None else load_block(value, key, self.format)

    def names_with(self, capability: str) -> tuple[str, ...]:
        """The names of all modules indexed under a capability."""
        blocks = stored_blocks(self._txn, self._dbs)
        posting = load_posting(self._txn, self._dbs, f"capability:{capability}", blocks)
        return load_names(self._txn, self._dbs, posting)
