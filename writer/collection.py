"""Collecting programs: a stored document stays as long as a kept version names it. Pure, but for the catalog's reads.

What a commit changes of the references is taken from the rows that it writes, so the two cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from dspy_registry.registry_store.codec import INTACT, crc32
from dspy_registry.registry_store.layout import HISTORY, MODULES
from dspy_registry.registry_store.program_rows import program_of, rows_of
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.draft import Draft

_WITH_VERSIONS: Final = (MODULES, HISTORY)

Puts = Mapping[bytes, Mapping[bytes, bytes]]
Deletes = Mapping[bytes, Sequence[bytes]]


def program_rows(
    draft: Draft, puts: Puts, deletes: Deletes, held: Collection[bytes] = (), released: Collection[bytes] = ()
) -> tuple[dict[bytes, bytes], list[bytes], Counter[bytes]]:
    """What to put into `programs`, what to delete there, and how the references change, by digest.

    The draft has the pieces of documents that are not stored whole. Those that no version names are not stored, unless
    they are `held`. Those that are `released` were held before.
    """
    catalog = draft.catalog
    changes = reference_changes(puts, deletes, catalog)
    before = catalog.program_references()
    named = (*before, *changes, *held, *released)
    left = {digest: before.get(digest, 0) + changes[digest] + (digest in held) for digest in named}
    added: dict[bytes, bytes] = {}
    for digest, pieces in draft.programs.items():
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
