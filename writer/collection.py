"""Collecting programs: a stored document stays as long as a kept version names it. Pure, but for the catalog's reads.

What a commit changes of the references is taken from the rows that it writes, so the two cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from dspy_registry.registry_store.codec import INTACT, crc32
from dspy_registry.registry_store.layout import HISTORY, MODULES
from dspy_registry.registry_store.program_rows import program_of, rows_of
from dspy_registry.writer.catalog import Catalog

_WITH_VERSIONS: Final = (MODULES, HISTORY)

Puts = Mapping[bytes, Mapping[bytes, bytes]]
Deletes = Mapping[bytes, Sequence[bytes]]


def program_rows(
    staged: Mapping[bytes, Sequence[bytes]], puts: Puts, deletes: Deletes, catalog: Catalog
) -> tuple[dict[bytes, bytes], list[bytes], Counter[bytes]]:
    """What to put into `programs`, what to delete there, and how the references change, by digest.

    `staged` are the pieces of documents that are not stored whole. Those that no version names are not stored.
    """
    changes = reference_changes(puts, deletes, catalog)
    before = catalog.program_references()
    left = {digest: before.get(digest, 0) + changes[digest] for digest in (*before, *changes)}
    added: dict[bytes, bytes] = {}
    for digest, pieces in staged.items():
        if left.get(digest, 0) > 0:
            added.update(rows_of(digest, pieces, catalog.format))
    dropped = [key for digest, count in left.items() if count <= 0 for key in catalog.program_keys(digest)]
    return added, dropped, changes


def reference_changes(puts: Puts, deletes: Deletes, catalog: Catalog) -> Counter[bytes]:
    """By how much each digest is named more or less often, once these rows are written."""
    changes: Counter[bytes] = Counter()
    for database in _WITH_VERSIONS:
        written = puts.get(database, {})
        for record in written.values():
            changes[program_of(record)] += 1
        for key in dict.fromkeys((*written, *deletes.get(database, ()))):
            former = catalog.row(database, key)
            if former is not None and crc32(former) == INTACT:
                changes[program_of(former)] -= 1
            elif former is not None:
                catalog.forget_program_references()
    del changes[b""]
    return changes
