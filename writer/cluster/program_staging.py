"""Which programs a change needs in the cluster, and whether it lets go of one. Pure but for what the draft reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dspy_registry.registry_store.cluster_rows import VERSIONS, row_key
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.layout import MODULES
from dspy_registry.registry_store.program_rows import load_program
from dspy_registry.writer.cluster.global_labels import version_codec
from dspy_registry.writer.cluster.global_rows import load_row, version_rows
from dspy_registry.writer.cluster.label_staging import LabelChanges
from dspy_registry.writer.draft import Draft


class ProgramChanges(NamedTuple):
    """The digests that the cluster may not have yet, and whether one may be named by nothing afterwards."""

    needed: tuple[bytes, ...]
    frees: bool


def program_changes(draft: Draft, touched: Iterable[str], found: LabelChanges) -> ProgramChanges:
    """What a change of the modules `touched`, and `found` of versions, does to programs.

    A program that a record of the same module names now is in the cluster: it is collected only when none does.
    """
    needed: dict[bytes, None] = {}
    frees = bool(found.removed or found.names)
    for name in touched:
        entry, row = draft.module(name), load_row(draft, row_key(MODULES, name.encode()))
        before = row.program if row is not None and row.is_live else b""
        after = entry.program if entry is not None else b""
        frees = frees or (bool(before) and before != after)
        if after and after != before and after not in _of_versions(draft, name):
            needed[after] = None
    for (kind, key), value in found.puts.items():
        if kind == VERSIONS:
            program, name = version_codec.load(value).program, key.partition(b"\0")[0].decode()
            row = load_row(draft, row_key(MODULES, name.encode()))
            if program and program not in _of_versions(draft, name) and (row is None or row.program != program):
                needed[program] = None
    return ProgramChanges(tuple(needed), frees)


def _of_versions(draft: Draft, name: str) -> set[bytes]:
    return {row.program for row in version_rows(draft, name).values()}


def document_of(environment: Environment, digest: bytes, pieces: Sequence[bytes]) -> bytes:
    """A document that a change names: its pieces joined; where there are none, what this host has stored.

    Raises CorruptRecordError.
    """
    if pieces:
        return b"".join(pieces)
    with environment.long_read() as txn:
        return load_program(txn, environment.dbs, digest)
