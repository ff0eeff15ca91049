"""The program of a version, read and decoded. What needs no DSPy is here, so that any process can look at a program."""

from __future__ import annotations

from typing import Final, NamedTuple

from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.errors import CorruptRecordError, NoProgramError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.program_document import ProgramDocument, decode_document
from dspy_registry.registry_store.program_rows import has_programs, load_program, program_of
from dspy_registry.registry_store.program_text import Difference, compared
from dspy_registry.registry_store.selection import load_version

MOST_COMPARED: Final = 1024 * 1024
"""Bytes of a document that is compared unasked, on a page beside others."""


class StoredProgram(NamedTuple):
    """The program of one version of a module. `digest` is the SHA-256 of its document, `size` that in bytes."""

    name: str
    version: int
    digest: str
    size: int
    document: ProgramDocument


def read_program(snapshot: Snapshot, asked: str, key: str | None = None) -> StoredProgram:
    """The program of a version, asked for as any module is: `name`, `name@3`, `name@label`, with a key.

    Raises NoProgramError when the version has none, UnknownModuleError, UnknownVersionError, UnknownLabelError,
    AmbiguousNameError, CorruptRecordError.
    """
    name, version, digest = snapshot._in_transaction(_choose, asked, key)
    document = snapshot._in_view(load_program, digest)
    return StoredProgram(name, version, digest.hex(), len(document), decode_document(document))


def read_document(snapshot: Snapshot, asked: str) -> bytes:
    """The bytes of a version's document. `asked` and errors are as for `read_program`."""
    return snapshot._in_view(load_program, snapshot._in_transaction(_choose, asked, None)[2])


def names_with_programs(snapshot: Snapshot) -> tuple[str, ...]:
    """The full names of the modules whose version in force has a program, in key order. Reads every record."""
    return snapshot._in_transaction(_named)


def _named(txn: Transaction, dbs: Databases) -> tuple[str, ...]:
    if not has_programs(txn, dbs):
        return ()
    return tuple(key.decode() for key, record in txn.cursor(dbs.modules) if program_of(record))


def program_differences(snapshot: Snapshot, old: bytes, new: bytes) -> list[Difference]:
    """How two programs differ, given by their digests. Empty where there is none, or one is large or damaged."""
    if not old or not new or old == new:
        return []
    try:
        documents = [snapshot._in_view(load_program, digest) for digest in (old, new)]
        if max(map(len, documents)) > MOST_COMPARED:
            return []
        return list(compared(*map(decode_document, documents)))
    except CorruptRecordError:
        return []


def _choose(txn: Transaction, dbs: Databases, asked: str, key: str | None) -> tuple[str, int, bytes]:
    """The name, the version, and the digest of its program."""
    chosen = lookup.select(txn, dbs, asked).choose(key)
    digest = load_version(txn, dbs, chosen.name, chosen.version).provenance.program
    if not digest:
        raise NoProgramError(asked, chosen.version)
    return chosen.name, chosen.version, digest
