"""Whether records, registration order and postings agree with each other.

Every module is looked at once, in registration order, and the posting of each of its terms must list it. If the
postings hold exactly as many entries as were found this way, they hold nothing else. Only if not, they are searched
for entries that do not belong.
"""

from __future__ import annotations

from collections.abc import Iterator

from dspy_registry.registry_store.changes import change_codec
from dspy_registry.registry_store.check.inspection import (
    CHANGES,
    HISTORY,
    INDEXES,
    LAYERS,
    VALUES,
    Head,
    Violation,
    text,
)
from dspy_registry.registry_store.codec import open_record
from dspy_registry.registry_store.errors import CorruptRecordError, InvalidModuleError
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import (
    LAST_SEQUENCE,
    MAX_RECORD_BYTES,
    posting_key,
    revision_key,
    split_posting_key,
    versioned_key,
)
from dspy_registry.registry_store.names import terms
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, load_row, name_at
from dspy_registry.registry_store.postings import BitMap, block_of, load_block
from dspy_registry.registry_store.records import Provenance, StoredModule
from dspy_registry.registry_store.scan import items_with_prefix
from dspy_registry.registry_store.validation import validate_encoded

_PROGRESS_EVERY = 125  # rows of names: a thousand modules
_CHANGES_HELD = 64
_TERMS_HELD = 20_000
_UNREADABLE = BitMap()


def postings_and_modules(head: Head) -> Iterator[Violation]:
    """What is wrong with modules, sequences and postings."""
    modules = _Modules(head)
    yield from modules.in_registration_order()
    if head.entries(head.dbs.modules) != modules.found:
        yield from _without_sequence(head)
    stored = _Blocks(head)
    yield from stored.violations()
    if stored.memberships != modules.memberships:
        yield from _strays(head, modules.unreadable)


class _Modules:
    """The pass over all modules. `memberships` counts the correct entries of postings.

    `unreadable` are the sequences of damaged records. Nobody can say which postings should list them.
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._block_number = -1
        self._blocks: dict[str, BitMap] = {}
        self._changes: dict[int, dict[str, int] | None] = {}
        self.found = 0
        self.memberships = 0
        self.unreadable = BitMap()

    def in_registration_order(self) -> Iterator[Violation]:
        total = self._head.entries(self._head.dbs.modules)
        progress = self._head.progress or (lambda _done, _total: None)
        for number, (key, value) in enumerate(self._head.rows(self._head.dbs.sequences)):
            if number % _PROGRESS_EVERY == 0:
                progress(min(number * NAMES_PER_ROW, total), total)
            yield from self._row(key, value)
        progress(total, total)

    def _row(self, key: bytes, value: bytes) -> Iterator[Violation]:
        first = int.from_bytes(key, "big") * NAMES_PER_ROW
        where = f"sequences/{first}"
        try:
            names = load_row(value, key, self._head.dbs.format)
        except CorruptRecordError as error:
            yield Violation(VALUES, where, str(error))
            return
        if len(key) != 4 or first + len(names) > self._head.state.next_sequence:
            yield Violation(INDEXES, where, f"is not below the next sequence, {self._head.state.next_sequence}")
        if first > LAST_SEQUENCE:
            return
        if len(names) > NAMES_PER_ROW or names[-1] == GONE:
            yield Violation(INDEXES, where, f"ends with nothing, or holds more than {NAMES_PER_ROW} names")
        for sequence, name in enumerate(names, first):
            if name != GONE:
                yield from self._at(sequence, name)

    def _at(self, sequence: int, name: str) -> Iterator[Violation]:
        where = f"sequences/{sequence}"
        record = self._head.txn.get(name.encode(), None, self._head.dbs.modules)
        if record is None:
            yield Violation(INDEXES, where, f"names {name!r}, which is not registered")
            return
        try:
            stored = open_record(record, name)
        except CorruptRecordError as error:
            self.found += 1
            self.unreadable.add(sequence)
            yield Violation(VALUES, f"modules/{name}", str(error))
            return
        if stored.provenance.sequence == sequence:
            self.found += 1
            yield from self._module(name, stored)
        else:
            yield Violation(INDEXES, where, f"names {name}, which has sequence {stored.provenance.sequence}")

    def _module(self, name: str, stored: StoredModule) -> Iterator[Violation]:
        where = f"modules/{name}"
        try:
            validate_encoded(stored.info, MAX_RECORD_BYTES, is_registered=True)
        except InvalidModuleError as error:
            yield Violation(VALUES, where, str(error))
        yield from self._provenance(where, name, stored.provenance)
        yield from self._memberships(stored)

    def _provenance(self, where: str, name: str, kept: Provenance) -> Iterator[Violation]:
        head = self._head
        if not 1 <= kept.revision <= head.state.revision:
            yield Violation(CHANGES, where, f"is of revision {kept.revision}, the newest is {head.state.revision}")
        if kept.version < 1:
            yield Violation(HISTORY, where, f"has version {kept.version}")
        elif (
            kept.version > 1
            and not kept.global_revision
            and not _holds(head, head.dbs.history, versioned_key(name, kept.version - 1))
        ):
            yield Violation(HISTORY, where, f"has version {kept.version}, but version {kept.version - 1} is not kept")
        if kept.source != CLIENT and not _has_layers(head, name):
            yield Violation(LAYERS, where, f"comes from {kept.source}, but has no layer")
        logged = self._logged(kept.revision)
        if logged is not None and logged.get(name) != kept.version:
            yield Violation(CHANGES, where, f"is of revision {kept.revision}, whose log entry does not say so")

    def _logged(self, revision: int) -> dict[str, int] | None:
        """The versions that a commit made, by name; None: the log no longer has it, or says `everything`."""
        if revision not in self._changes:
            if len(self._changes) >= _CHANGES_HELD:
                self._changes.clear()
            self._changes[revision] = self._load_logged(revision)
        return self._changes[revision]

    def _load_logged(self, revision: int) -> dict[str, int] | None:
        key = revision_key(max(revision, 0))
        value = self._head.txn.get(key, None, self._head.dbs.changes)
        try:
            change = None if value is None else change_codec.load(value, key, self._head.dbs.format)
        except CorruptRecordError:  # reported where the log is looked at
            return None
        if change is None or change.everything:
            return None
        return {module.name: module.version for module in change.modules if module.action != "unregistered"}

    def _memberships(self, stored: StoredModule) -> Iterator[Violation]:
        sequence = stored.provenance.sequence
        for term in terms(stored.info, self._head.vocabulary):
            block = self._block(term, block_of(sequence))
            if sequence in block:
                self.memberships += 1
            elif block is not _UNREADABLE:
                yield Violation(INDEXES, f"postings/{term}", f"lacks {stored.info.name}")

    def _block(self, term: str, number: int) -> BitMap:
        if number != self._block_number:
            self._blocks.clear()
            self._block_number = number
        block = self._blocks.get(term)
        if block is None:
            key = posting_key(term.encode(), number)
            value = self._head.txn.get(key, None, self._head.dbs.postings)
            try:
                block = BitMap() if value is None else load_block(value, key, self._head.dbs.format)
            except CorruptRecordError:  # reported where the postings are looked at
                block = _UNREADABLE
            self._blocks[term] = block
        return block


class _Blocks:
    """The pass over all stored blocks of postings. `memberships` counts their entries."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self.memberships = 0

    def violations(self) -> Iterator[Violation]:
        for key, value in self._head.rows(self._head.dbs.postings):
            split = split_posting_key(key)
            if split is None:
                yield Violation(INDEXES, f"postings/{text(key)}", "is not a posting key")
                continue
            where, number = f"postings/{text(split[0])}", split[1]
            try:
                block = load_block(value, key, self._head.dbs.format)
            except CorruptRecordError as error:
                yield Violation(VALUES, where, str(error))
                continue
            self.memberships += len(block)
            if not block:
                yield Violation(INDEXES, where, f"block {number} is empty, but it is stored")
            elif {block_of(block.min()), block_of(block.max())} != {number}:
                yield Violation(INDEXES, where, f"block {number} holds sequences of other blocks")


def _without_sequence(head: Head) -> Iterator[Violation]:
    """Records that the registration order does not name."""
    for key, value in head.rows(head.dbs.modules):
        name = text(key)
        try:
            sequence = open_record(value, name).provenance.sequence
        except CorruptRecordError as error:
            yield Violation(VALUES, f"modules/{name}", str(error))
            continue
        if _name_at(head, sequence) != name:
            yield Violation(INDEXES, f"modules/{name}", f"sequence {sequence} does not name it")


def _strays(head: Head, unreadable: BitMap) -> Iterator[Violation]:
    """Entries of postings whose module does not exist, or does not have the term."""
    held: dict[int, frozenset[str]] = {}
    for key, value in head.rows(head.dbs.postings):
        split = split_posting_key(key)
        if split is None:
            continue
        term, number = text(split[0]), split[1]
        try:
            block = load_block(value, key, head.dbs.format)
        except CorruptRecordError:
            continue
        for sequence in block - unreadable:
            if len(held) > _TERMS_HELD:
                held.clear()
            if sequence not in held:
                held[sequence] = _terms_at(head, sequence)
            if term not in held[sequence] or block_of(sequence) != number:
                yield Violation(INDEXES, f"postings/{term}", f"lists sequence {sequence}, which does not have it")


def _terms_at(head: Head, sequence: int) -> frozenset[str]:
    name = _name_at(head, sequence)
    stored = None if name == GONE else head.module(name)
    if stored is None or stored.provenance.sequence != sequence:
        return frozenset()
    return frozenset(terms(stored.info, head.vocabulary))


def _name_at(head: Head, sequence: int) -> str:
    try:
        return name_at(head.txn, head.dbs, sequence)
    except CorruptRecordError:  # the pass in registration order reports it
        return GONE


def _holds(head: Head, database: object, key: bytes) -> bool:
    return head.txn.get(key, None, database) is not None


def _has_layers(head: Head, name: str) -> bool:
    return any(items_with_prefix(head.txn, head.dbs.layers, name.encode() + b"\0"))
