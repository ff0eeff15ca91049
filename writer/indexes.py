"""How postings change: collected by term while a draft is applied, then merged block by block."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from dspy_registry.registry_store.layout import BLOCK_BITS, posting_key
from dspy_registry.registry_store.postings import BitMap, block_of, store_block
from dspy_registry.writer.catalog import Catalog


class PostingChanges:
    """Sequences added to and removed from terms. `terms` has every changed term."""

    def __init__(self) -> None:
        self._added: dict[str, list[int]] = {}
        self._removed: dict[str, list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._added or self._removed)

    @property
    def terms(self) -> Collection[str]:
        """Every term whose posting changes."""
        return {**self._added, **self._removed}.keys()

    def add(self, sequence: int, terms: Iterable[str]) -> None:
        """Add a module to these terms."""
        _note(sequence, terms, self._added)

    def remove(self, sequence: int, terms: Iterable[str]) -> None:
        """Remove a module from these terms."""
        _note(sequence, terms, self._removed)

    def replace(self, sequence: int, old_terms: Iterable[str], new_terms: Iterable[str]) -> None:
        """Move a module from its old terms to its new ones. Terms in both do not change."""
        old, new = set(old_terms), set(new_terms)
        self.remove(sequence, old - new)
        self.add(sequence, new - old)

    def blocks(self, catalog: Catalog) -> Iterator[tuple[bytes, bytes | None]]:
        """(key, bytes to store) of each changed block. None as bytes: delete the block, it is empty."""
        last_stored = block_of(max(catalog.state.next_sequence - 1, 0))
        for term in self.terms:
            encoded = term.encode()
            if len(self._added.get(term, ())) == 1 and term not in self._removed:  # as in most commits
                yield self._with_one_more(term, encoded, catalog, last_stored)
                continue
            for number, added, removed in self._block_changes(term):
                key = posting_key(encoded, number)
                block = added
                if number <= last_stored:
                    block = (catalog.block(key) - removed) | added
                yield key, store_block(block, key, catalog.format) if block else None

    def _with_one_more(self, term: str, encoded: bytes, catalog: Catalog, last_stored: int) -> tuple[bytes, bytes]:
        (sequence,) = self._added[term]
        number = block_of(sequence)
        key = posting_key(encoded, number)
        block = catalog.block(key) if number <= last_stored else BitMap()
        block.add(sequence)
        return key, store_block(block, key, catalog.format)

    def _block_changes(self, term: str) -> Iterator[tuple[int, BitMap, BitMap]]:
        added, removed = self._added.get(term, ()), self._removed.get(term, ())
        numbers = {block_of(sequence) for sequence in (*added, *removed)}
        all_added, all_removed = BitMap(added), BitMap(removed)
        for number in numbers:
            span = BitMap(range(number << BLOCK_BITS, (number + 1) << BLOCK_BITS)) if len(numbers) > 1 else None
            yield (
                number,
                all_added if span is None else all_added & span,
                all_removed if span is None else all_removed & span,
            )


def _note(sequence: int, terms: Iterable[str], by_term: dict[str, list[int]]) -> None:
    for term in terms:
        if term in by_term:
            by_term[term].append(sequence)
        else:
            by_term[term] = [sequence]
