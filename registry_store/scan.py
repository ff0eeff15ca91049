"""Reading the rows of a database, which may be None: a registry of an older format, or an older one, lacks it."""

from __future__ import annotations

from collections.abc import Iterator

from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Database, Transaction


def value_at(txn: Transaction, database: Database, key: bytes) -> bytes | None:
    """The value of a key. None: there is no such row, or no such database."""
    return None if database is None else txn.get(key, None, database)


def items_from(txn: Transaction, database: Database, key: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each row from this key on, in key order. An empty key means all rows."""
    if database is None:
        return
    cursor = txn.cursor(database)
    if cursor.set_range(key):  # LMDB's binding takes an empty key as the first key
        yield from cursor


def items_with_prefix(txn: Transaction, database: Database, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of each row whose key begins with `prefix`, in key order. An empty prefix means all rows."""
    for key, value in items_from(txn, database, prefix):
        if not key.startswith(prefix):
            return
        yield key, value


def items_from_last(txn: Transaction, database: Database, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What `items_with_prefix` gives, in reverse key order. The prefix ends with a zero byte."""
    if database is None:
        return
    cursor = txn.cursor(database)
    found = cursor.prev() if cursor.set_range(prefix[:-1] + b"\1") else cursor.last()
    while found and cursor.key().startswith(prefix):
        yield cursor.item()
        found = cursor.prev()


def groups_with_prefix(txn: Transaction, database: Database, prefix: bytes, tail: int) -> Iterator[bytes]:
    """Each distinct key without its last `tail` bytes, of the keys that begin with `prefix`, in key order.

    The tail begins with a zero byte, and nothing before it holds one. So the next group is found without a full read.
    Raises CorruptRecordError for a key that is not made so.
    """
    if database is None:
        return
    cursor = txn.cursor(database)
    found = cursor.set_range(prefix)
    while found and cursor.key().startswith(prefix):
        key = cursor.key()
        if len(key) <= tail or key[-tail]:  # it might be found for ever
            raise CorruptRecordError(f"{key!r} is a key without a zero byte in its place.")
        group = key[:-tail]
        yield group
        found = cursor.set_range(group + b"\1")
