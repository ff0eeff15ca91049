"""Writes by hand: the same bytes, with py-lmdb and msgspec only."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import lmdb

from dspy_registry import ModuleInfo, Provenance
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.codec import encode, seal_record
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.names import terms
from dspy_registry.registry_store.order import GONE, NAMES_PER_ROW, row_of, store_row
from dspy_registry.registry_store.postings import BitMap, store_block
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS, Vocabulary

Pairs = list[tuple[bytes, bytes, bytes]]
"""Database, key, value."""


class Commit:
    """The deletes and puts of one commit of the registry."""

    def __init__(self, operations: Any) -> None:
        self.deletes = [(database, key) for database, keys in operations.deletes.items() for key in keys]
        self.puts: Pairs = [
            (database, key, value) for database, puts in operations.puts.items() for key, value in puts.items()
        ]

    @property
    def value_bytes(self) -> int:
        """Bytes of all values."""
        return sum(len(value) for _, _, value in self.puts)


@contextmanager
def captured() -> Iterator[list[Commit]]:
    """Record all commits that registries in this process make meanwhile. The commits are made as usual."""
    from dspy_registry.writer import commit

    commits: list[Commit] = []
    write = commit.write

    def write_and_keep(txn: Any, environment: Any, operations: Any) -> None:
        commits.append(Commit(operations))
        write(txn, environment, operations)

    with mock.patch.object(commit, "write", write_and_keep):
        yield commits


class ByHand:
    """A registry's data file, opened by py-lmdb alone with the same options."""

    def __init__(self, path: Path) -> None:
        self._env = lmdb.open(
            str(path), map_size=layout.MAP_SIZE, max_dbs=len(layout.DATABASES) + 8, readahead=False, meminit=False
        )
        self._dbs = {name: self._env.open_db(name) for name in layout.DATABASES}

    def commit(self, commit: Commit) -> None:
        """One durable transaction."""
        dbs = self._dbs
        txn = self._env.begin(write=True)
        for database, key in commit.deletes:
            txn.delete(key, db=dbs[database])
        for database, key, value in commit.puts:
            txn.put(key, value, db=dbs[database])
        txn.commit()

    def load(self, infos: Iterable[ModuleInfo], before: Sequence[str]) -> None:
        """Load records, their order and their postings in one transaction, after modules of these names.

        It is as quick as possible: it writes in key order, so that pages are appended, and validates nothing. The
        functions that define the format make the terms and values, because both must be the same.
        """
        modules, sequences, postings = _built(infos, before)
        with self._env.begin(write=True) as txn:
            for name, pairs in ((layout.MODULES, modules), (layout.SEQUENCES, sequences), (layout.POSTINGS, postings)):
                pairs.sort()
                txn.cursor(self._dbs[name]).putmulti(pairs, append=True)

    def contents(self, name: bytes) -> dict[bytes, bytes]:
        """All values of one database, by key."""
        with self._env.begin() as txn:
            return dict(txn.cursor(self._dbs[name]))

    def bytes_of(self, name: bytes) -> int:
        """How many bytes the pages of one database take."""
        with self._env.begin() as txn:
            stat = txn.stat(self._dbs[name])
        return int(stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"]))

    def close(self) -> None:
        self._env.close()


def _built(infos: Iterable[ModuleInfo], before: Sequence[str]) -> tuple[list[Any], list[Any], list[Any]]:
    """Records, rows of names and posting blocks, each as keys and values."""
    now = time.time_ns() // 1_000_000
    by = os.geteuid(), os.getpid()
    vocabulary = Vocabulary(CORE_IMPLICATIONS)
    modules = []
    rows: dict[int, list[str]] = defaultdict(lambda: [GONE] * NAMES_PER_ROW)
    members: dict[str, list[int]] = defaultdict(list)
    for sequence, name in enumerate(before):
        rows[row_of(sequence)][sequence % NAMES_PER_ROW] = name
    for sequence, info in enumerate(infos, len(before)):
        kept = Provenance(version=1, revision=2, updated_at=now, source=CLIENT, sequence=sequence, by=by)
        modules.append((info.name.encode(), seal_record(encode(info), kept, layout.FORMAT_VERSION)))
        rows[row_of(sequence)][sequence % NAMES_PER_ROW] = info.name
        for term in terms(info, vocabulary):
            members[term].append(sequence)
    sequences = []
    for number, names in rows.items():
        key = layout.sequence_row_key(number)
        sequences.append((key, store_row(names, key, layout.FORMAT_VERSION)))
    return modules, sequences, _posting_blocks(members)


def _posting_blocks(members: dict[str, list[int]]) -> list[tuple[bytes, bytes]]:
    found = []
    for term, sequences in members.items():
        blocks: dict[int, list[int]] = defaultdict(list)
        for sequence in sequences:
            blocks[sequence >> layout.BLOCK_BITS].append(sequence)
        for number, block in blocks.items():
            key = layout.posting_key(term.encode(), number)
            found.append((key, store_block(BitMap(block), key, layout.FORMAT_VERSION)))
    return found
