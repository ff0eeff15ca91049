"""Postings: the modules of each term, as compressed bitmaps of registration sequences.

A bitmap's ascending order is registration order, and terms are intersected by machine instructions. A posting is cut
into blocks of 2**BLOCK_BITS consecutive sequences. A block holds the sequences themselves, so the union of a term's
blocks is its posting. An empty block is not stored. A block of one sequence is stored as that number; nearly every
short name has such a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pyroaring import BitMap

from dspy_registry.registry_store.codec import CHECKSUM_BYTES, INTACT, crc32, database_seal, key_text, seal, unseal
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import BLOCK_BITS, POSTINGS, posting_key
from dspy_registry.registry_store.order import past_last
from dspy_registry.registry_store.scan import groups_with_prefix, items_from

__all__ = [
    "BitMap",
    "block_of",
    "blocks_with",
    "load_block",
    "load_posting",
    "store_block",
    "stored_blocks",
    "words_in_use",
]

_LONE_BYTES: Final = 4
_SEAL: Final = database_seal(POSTINGS)
_FEW: Final = 64
_FEW_BLOCKS: Final = 64  # up to this many are asked for one by one; for more, a scan of the term's blocks is quicker


def block_of(sequence: int) -> int:
    """The number of the block that holds a sequence."""
    return sequence >> BLOCK_BITS


def store_block(block: BitMap, key: bytes, format: int) -> bytes:
    """The bytes to store under its key for a block that is not empty."""
    after = crc32(key, _SEAL) if format > 1 else 0
    if len(block) == 1:
        return seal(block.min().to_bytes(_LONE_BYTES, "big"), after)
    block.run_optimize()
    return seal(block.serialize(), after)


def load_block(value: bytes, key: bytes, format: int) -> BitMap:
    """The block that is stored under this key as these bytes. Raises CorruptRecordError."""
    after = crc32(key, _SEAL) if format > 1 else 0
    if crc32(value, after) != INTACT:
        unseal(value, "a posting", after)
    if len(value) == _LONE_BYTES + CHECKSUM_BYTES:
        return BitMap((int.from_bytes(value[:_LONE_BYTES], "big"),))
    try:
        return BitMap.deserialize(value)  # it stops at the end of the bitmap, before the checksum
    except (ValueError, IndexError) as error:
        raise CorruptRecordError(f"a posting cannot be decoded ({error}).") from error


def load_posting(txn: Transaction, dbs: Databases, term: str, blocks: Iterable[int]) -> BitMap:
    """The modules of a term in these blocks; empty if it has none there."""
    if "\0" in term:  # no term holds it, and it would match keys of another term
        return BitMap()
    encoded = term.encode("utf-8", "surrogatepass")  # a surrogate matches nothing that is stored
    if isinstance(blocks, range) and len(blocks) > _FEW_BLOCKS:
        return BitMap.union(BitMap(), *[load_block(*row, dbs.format) for row in _walk(txn, dbs, encoded, blocks)])
    keys = [posting_key(encoded, block) for block in blocks]
    found = txn.cursor(dbs.postings).getmulti(keys)
    return BitMap.union(BitMap(), *[load_block(value, key, dbs.format) for key, value in found])


def _walk(txn: Transaction, dbs: Databases, term: bytes, blocks: range) -> Iterator[tuple[bytes, bytes]]:
    """(value, key) of the stored blocks of a term, in as many steps as it has blocks in the range."""
    last = posting_key(term, blocks[-1])
    for key, value in items_from(txn, dbs.postings, posting_key(term, blocks[0])):
        if key > last:
            return
        yield value, key


def stored_blocks(txn: Transaction, dbs: Databases) -> range:
    """The numbers of all blocks that may be stored."""
    past = past_last(txn, dbs)
    return range(block_of(past - 1) + 1) if past else range(0)


def blocks_with(sequences: BitMap, blocks: range) -> Iterable[int]:
    """The blocks that hold one of the sequences; all blocks, if there are too many sequences to tell quickly."""
    if len(sequences) > _FEW:
        return blocks
    return sorted({block_of(sequence) for sequence in sequences})


def words_in_use(txn: Transaction, dbs: Databases, kind: str, start: str) -> Iterator[str]:
    """The words of a kind of term that begin with `start` and that some module has, in key order."""
    prefix = f"{kind}:{start}".encode("utf-8", "surrogatepass")
    for term in groups_with_prefix(txn, dbs.postings, prefix, len(posting_key(b"", 0))):
        yield key_text(term).partition(":")[2]
