"""What the parts of the check share: violations, and the transaction with the registry's head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import State, implications_codec, state_codec
from dspy_registry.registry_store.codec import Sealed, open_record
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryNotFoundError
from dspy_registry.registry_store.handles import Database, Databases, Transaction
from dspy_registry.registry_store.layers import Defaults, defaults_codec
from dspy_registry.registry_store.opening import known_format
from dspy_registry.registry_store.protocol import Progress
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.registry_store.vocabulary import Vocabulary

# Numbers of docs/design.md.
REVISION_WORD: Final = "I2"
INDEXES: Final = "I5"
ALIASES: Final = "I6"
LAYERS: Final = "I7"
HISTORY: Final = "I8"
LABELS: Final = HISTORY
CHANGES: Final = "I9"
VALUES: Final = "I10"
DAMAGE: Final = "I23"
LIMITS: Final = "I28"
CIRCUITS: Final = "I29"
PROGRAMS: Final = "I33"
CLUSTER: Final = "I34"
HEAD: Final = VALUES


class Violation(msgspec.Struct, frozen=True):
    """One violated invariant: its number in docs/design.md, the database and key, and a message."""

    invariant: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.invariant} {self.where}: {self.message}"


class Head:
    """One transaction, and what `meta` says of the whole registry. Raises as `load_head`."""

    def __init__(self, txn: Transaction, dbs: Databases, progress: Progress | None = None) -> None:
        self.txn = txn
        self.dbs = dbs
        self.progress = progress
        self.registry_id = bytes(txn.get(layout.META_ID, b"", dbs.meta))
        self.state: State = self._meta(layout.META_STATE, state_codec)
        self.vocabulary = Vocabulary.combined(self._meta(layout.META_VOCABULARY, implications_codec))
        rules = txn.get(layout.META_DEFAULTS, None, dbs.meta)
        self.defaults: Defaults = {} if rules is None else defaults_codec.load(rules, layout.META_DEFAULTS, dbs.format)

    def _meta(self, key: bytes, codec: Sealed) -> Any:
        value = self.txn.get(key, None, self.dbs.meta)
        if value is None:
            raise CorruptRecordError(f"{text(key)} is missing.")
        return codec.load(value, key, self.dbs.format)

    def rows(self, database: Database) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value, in key order. Raises CorruptRecordError where pages lead astray."""
        if database is None:
            return
        last, count = b"", 0
        for key, value in self.txn.cursor(database):
            if key <= last:  # a page that points back to an earlier one would be read for ever
                raise CorruptRecordError(f"{text(key)!r} follows {text(last)!r}.")
            last, count = key, count + 1
            yield key, value
        if count != self.entries(database):
            raise CorruptRecordError(f"{count} entries where {self.entries(database)} should be.")

    def entries(self, database: Database) -> int:
        """The number of keys of a database."""
        count: int = self.txn.stat(database)["entries"]
        return count

    def module(self, name: str) -> StoredModule | None:
        """The stored module; None: it is not registered, or damaged, which the section on modules reports."""
        value = self.txn.get(name.encode(), None, self.dbs.modules) if name else None
        try:
            return None if value is None else open_record(value, name)
        except CorruptRecordError:
            return None

    def is_registered(self, name: str) -> bool:
        """Whether there is a record of this name, intact or damaged."""
        return bool(name) and self.txn.get(name.encode(), None, self.dbs.modules) is not None


def load_head(txn: Transaction, dbs: Databases, progress: Progress | None) -> Head:
    """The registry's head. Raises FormatVersionError, RegistryNotFoundError, CorruptRecordError, VocabularyError."""
    found = txn.get(layout.META_FORMAT, None, dbs.meta)
    if found is None:
        raise RegistryNotFoundError("the registry has no format version: it was never completed.")
    if not found.isdigit():
        raise CorruptRecordError(f"the format version is {found!r}.")
    if known_format(found) != dbs.format:
        raise CorruptRecordError(f"the format version is {found!r}, and was {dbs.format} when it was opened.")
    return Head(txn, dbs, progress)


def text(key: bytes) -> str:
    """A key as readable text. Bytes that are not UTF-8 are escaped."""
    return key.decode("utf-8", "backslashreplace")
