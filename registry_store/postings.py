"""Postings: which modules a term has, as compressed bitmaps of registration sequences.

Ascending order of a bitmap is registration order, and intersecting terms is a machine operation. A posting is cut
into blocks of 2**BLOCK_BITS consecutive sequences; a block holds the sequences as they are, so that the union of a
term's blocks is its posting. An empty block is not stored, and one with a single sequence, such as nearly every short
name has, is just that number.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from pyroaring import BitMap

from dspy_registry.registry_store.codec import CHECKSUM_BYTES, INTACT, crc32, seal, unseal
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import BLOCK_BITS, posting_key
from dspy_registry.registry_store.order import past_last

__all__ = [
    "BitMap",
    "block_of",
    "blocks_with",
    "load_block",
    "load_posting",
    "store_block",
    "stored_blocks",
]

_LONE_BYTES: Final = 4
_FEW: Final = 64
_FEW_BLOCKS: Final = 64  # asked for one by one: for more, walking through those that a term has is quicker


def block_of(sequence: int) -> int:
    """The number of the block that holds a sequence."""
    return sequence >> BLOCK_BITS


def store_block(block: BitMap) -> bytes:
    """The stored bytes of a block that is not empty."""
    if len(block) == 1:
        return seal(block.min().to_bytes(_LONE_BYTES, "big"))
    block.run_optimize()
    return seal(block.serialize())


def load_block(value: bytes) -> BitMap:
    """The block of its stored bytes. Raises CorruptRecordError."""
    if crc32(value) != INTACT:
        unseal(value, "a posting")
    if len(value) == _LONE_BYTES + CHECKSUM_BYTES:
        return BitMap((int.from_bytes(value[:_LONE_BYTES], "big"),))
    try:
        return BitMap.deserialize(value)  # it knows where it ends: the checksum need not be cut off
    except (ValueError, IndexError) as error:
        raise CorruptRecordError(f"a posting cannot be decoded ({error}).") from error


def load_posting(txn: Transaction, dbs: Databases, term: str, blocks: Iterable[int]) -> BitMap:
    """The modules of a term in these blocks; empty when it has none."""
    if "\0" in term:  # no term of ours, but it would match the keys of one
        return BitMap()
    encoded = term.encode("utf-8", "surrogatepass")  # a surrogate matches nothing that is stored
    if isinstance(blocks, range) and len(blocks) > _FEW_BLOCKS:
        return BitMap.union(BitMap(), *[load_block(value) for value in _walk(txn, dbs, encoded, blocks)])
    keys = [posting_key(encoded, block) for block in blocks]
    found = txn.cursor(dbs.postings).getmulti(keys)
    return BitMap.union(BitMap(), *[load_block(value) for _, value in found])


def _walk(txn: Transaction, dbs: Databases, term: bytes, blocks: range) -> Iterator[bytes]:
    """The stored blocks of a term: as many steps as it has, though numbers without a block be many thousands."""
    cursor = txn.cursor(dbs.postings)
    last = posting_key(term, blocks[-1])
    if cursor.set_range(posting_key(term, blocks[0])):
        for key, value in cursor:
            if bytes(key) > last:
                return
            yield value


def stored_blocks(txn: Transaction, dbs: Databases) -> range:
    """The numbers of all blocks that there may be."""
    past = past_last(txn, dbs)
    return range(block_of(past - 1) + 1) if past else range(0)


def blocks_with(sequences: BitMap, blocks: range) -> Iterable[int]:
    """Of these blocks, those that hold one of the sequences, as far as that is quick to tell."""
    if len(sequences) > _FEW:
        return blocks
    return sorted({block_of(sequence) for sequence in sequences})
