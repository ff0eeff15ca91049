"""Registration order: the name of each sequence, eight to a row.

One row for each name would cost much beside the name itself. With eight names in a row, a name costs little more than
its own bytes, and a registration still rewrites only a small row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from dspy_registry.registry_store.codec import database_seal, key_seal, seal, unseal
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import LAST_SEQUENCE, SEQUENCES, sequence_row_key

NAMES_PER_ROW: Final = 8
GONE: Final = ""
"""Stands in place of a name that is gone: the module of this sequence was unregistered."""

_SEPARATOR: Final = "\0"
_SEAL: Final = database_seal(SEQUENCES)


def row_of(sequence: int) -> int:
    """The number of the row that holds a sequence."""
    return sequence // NAMES_PER_ROW


def store_row(names: list[str], key: bytes, format: int) -> bytes | None:
    """The bytes to store for a row under its key; None when all are gone, which is not stored."""
    joined = _SEPARATOR.join(names).rstrip(_SEPARATOR)
    return seal(joined.encode(), key_seal(_SEAL, key, format)) if joined else None


def load_row(value: bytes, key: bytes, format: int) -> list[str]:
    """The names of a stored row, GONE in between; those after the last are left out. Raises CorruptRecordError."""
    try:
        return str(unseal(value, "a row of names", key_seal(_SEAL, key, format)), "utf-8").split(_SEPARATOR)
    except UnicodeDecodeError as error:
        raise CorruptRecordError(f"a row of names cannot be decoded ({error}).") from error


def load_names(txn: Transaction, dbs: Databases, sequences: Iterable[int]) -> tuple[str, ...]:
    """The names of these sequences, in the order given. Raises CorruptRecordError if a sequence has no name."""
    places = [divmod(sequence, NAMES_PER_ROW) for sequence in sequences]
    numbers = list(dict.fromkeys([number for number, _ in places]))
    found = txn.cursor(dbs.sequences).getmulti([sequence_row_key(number) for number in numbers])
    rows = dict(zip(numbers, [load_row(value, key, dbs.format) for key, value in found], strict=False))
    try:
        names = tuple([rows[number][place] for number, place in places])
    except LookupError:
        names = (GONE,)
    if len(found) != len(numbers) or GONE in names:
        raise CorruptRecordError("a posting names a module that is not registered.")
    return names


def name_at(txn: Transaction, dbs: Databases, sequence: int) -> str:
    """The name of one sequence; GONE: it has none. Raises CorruptRecordError."""
    number, place = divmod(sequence, NAMES_PER_ROW)
    key = sequence_row_key(number)
    value = txn.get(key, None, dbs.sequences)
    names = [] if value is None else load_row(value, key, dbs.format)
    return names[place] if place < len(names) else GONE


def all_names(txn: Transaction, dbs: Databases) -> Iterator[str]:
    """Every module's name, in registration order. Raises CorruptRecordError."""
    for key, value in txn.cursor(dbs.sequences):
        yield from filter(None, load_row(value, key, dbs.format))


def past_last(txn: Transaction, dbs: Databases) -> int:
    """A number above every stored sequence; 0: no sequence is stored. Raises CorruptRecordError for no row's key."""
    cursor = txn.cursor(dbs.sequences)
    if not cursor.last():
        return 0
    past = (int.from_bytes(cursor.key(), "big") + 1) * NAMES_PER_ROW
    if past > LAST_SEQUENCE + NAMES_PER_ROW:
        raise CorruptRecordError(f"{cursor.key()!r} is no key of a row of names.")
    return past
