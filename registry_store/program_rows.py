"""The rows of the database `programs`: documents of compiled programs, stored once each, in pieces.

SHA-256             how many bytes and pieces the document has
SHA-256, number     one piece; numbers are 4 bytes, big-endian, from 0

A version of a module names its document in its provenance. Look-ups of modules never read this database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.codec import INTACT, Buffer, Sealed, crc32, database_seal, key_seal, seal, unseal
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import PROGRAMS
from dspy_registry.registry_store.program_document import digest_of
from dspy_registry.registry_store.records import Provenance
from dspy_registry.registry_store.scan import items_with_prefix, value_at

DIGEST_BYTES: Final = 32
PIECE_BYTES: Final = 16 * 4096 - 16 - 4
"""With its checksum and LMDB's header a piece fills whole pages."""

_NUMBER_BYTES: Final = 4
_SEAL: Final = database_seal(PROGRAMS)


class ProgramHead(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How many bytes a document has, in how many pieces."""

    size: int
    pieces: int


head_codec = Sealed(ProgramHead, "the head of a program", PROGRAMS)


class _Kept(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record of which only the provenance is decoded."""

    info: msgspec.Raw
    provenance: Provenance


_decode_kept = msgspec.msgpack.Decoder(_Kept).decode


def cut(document: bytes) -> list[bytes]:
    """The pieces of a document, in order."""
    return [document[at : at + PIECE_BYTES] for at in range(0, len(document), PIECE_BYTES)]


def rows_of(digest: bytes, pieces: Sequence[bytes], format: int) -> dict[bytes, bytes]:
    """The rows of a document, by key."""
    rows = {digest: head_codec.dump(ProgramHead(sum(map(len, pieces)), len(pieces)), digest, format)}
    for number, piece in enumerate(pieces):
        key = _piece_key(digest, number)
        rows[key] = seal(piece, key_seal(_SEAL, key, format))
    return rows


def keys_of(txn: Transaction, dbs: Databases, digest: bytes) -> list[bytes]:
    """The keys of all rows of a document, damaged ones too."""
    return [key for key, _ in items_with_prefix(txn, dbs.programs, digest)]


def has_programs(txn: Transaction, dbs: Databases) -> bool:
    """Whether any document is stored."""
    return dbs.programs is not None and bool(txn.stat(dbs.programs)["entries"])


def is_stored(txn: Transaction, dbs: Databases, digest: bytes) -> bool:
    """Whether there is a document of this digest."""
    return len(digest) == DIGEST_BYTES and value_at(txn, dbs.programs, digest) is not None


def stored_digests(txn: Transaction, dbs: Databases) -> Iterator[bytes]:
    """The digest of every document, whole or not, once each. Raises CorruptRecordError for no program's key."""
    if dbs.programs is None:
        return
    cursor = txn.cursor(dbs.programs)
    digest, found = b"", cursor.first()
    while found:
        last, digest = digest, cursor.key()[:DIGEST_BYTES]
        if digest <= last:  # it would be found for ever
            raise CorruptRecordError(f"{cursor.key()!r} is no key of a program.")
        yield digest
        found = cursor.set_range(digest + b"\xff" * (_NUMBER_BYTES + 1))


def load_program(txn: Transaction, dbs: Databases, digest: bytes) -> bytes:
    """The document of this digest. Raises CorruptRecordError when a part of it is missing or damaged."""
    return document_in(lambda key: value_at(txn, dbs.programs, key), digest, dbs.format)


def document_in(row_at: Callable[[bytes], Buffer | None], digest: bytes, format: int) -> bytes:
    """The document of this digest, from rows that `row_at` gives by key. Raises as `load_program`."""
    what = f"the program {digest.hex()[:12]}"
    head: ProgramHead = head_codec.load(row_at(digest), digest, format)
    pieces: list[Any] = []
    for number in range(head.pieces):
        key = _piece_key(digest, number)
        value = row_at(key)
        if value is None:
            raise CorruptRecordError(f"{what}: piece {number} of {head.pieces} is missing.")
        pieces.append(unseal(memoryview(value), f"{what}, piece {number}", key_seal(_SEAL, key, format)))
    document = b"".join(pieces)
    if digest_of(document) != digest:
        raise CorruptRecordError(f"{what}: its pieces are not what was published.")
    return document


def program_of(record: bytes) -> bytes:
    """The digest of the program that a record names. Empty: it names no program, or the record is damaged."""
    try:
        return _decode_kept(record).provenance.program if crc32(record) == INTACT else b""
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return b""


def _piece_key(digest: bytes, number: int) -> bytes:
    return digest + number.to_bytes(_NUMBER_BYTES, "big")
