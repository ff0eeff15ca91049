"""Programs that are stored before the versions that name them, so that many large ones never lie in memory together.

A row of `meta` holds each, as a version would. It is written in the commit of the program, and removed in the one that
shows the versions: then what no version names is collected. A kill in between leaves rows that the next such commit
removes.
"""

from __future__ import annotations

from collections.abc import Sequence

from dspy_registry.registry_store.cluster_rows import HELD, GlobalRow, global_row_codec, row_key
from dspy_registry.writer.draft import Draft

_PREFIX = row_key(HELD, b"")


def hold(draft: Draft, digest: bytes, pieces: Sequence[bytes]) -> None:
    """Stage a program, and the row that holds it. `pieces` as `program_rows.cut` makes them."""
    key = row_key(HELD, digest)
    draft.cluster[key] = global_row_codec.dump(GlobalRow(0), key, draft.catalog.format)
    if not draft.has_program(digest):
        draft.programs[digest] = tuple(pieces)


def release_held(draft: Draft) -> None:
    """Stage that no program is held any longer."""
    for key, _ in draft.catalog.cluster_rows(_PREFIX):
        draft.cluster[key] = None


def held_after(draft: Draft) -> tuple[set[bytes], set[bytes]]:
    """The digests that are held once this draft is committed, and those that were held and no longer are."""
    before = {key[len(_PREFIX) :] for key, _ in draft.catalog.cluster_rows(_PREFIX)}
    changed = {key[len(_PREFIX) :]: row for key, row in draft.cluster.items() if key.startswith(_PREFIX)}
    after = {digest for digest in (*before, *changed) if changed.get(digest, b"") is not None}
    return after, before - after
