"""Whether the programs that versions name are stored whole, and nothing else is."""

from __future__ import annotations

from collections.abc import Iterator

from dspy_registry.registry_store.check.inspection import PROGRAMS, VALUES, Head, Violation, text
from dspy_registry.registry_store.cluster_rows import held_programs
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.program_rows import (
    DIGEST_BYTES,
    head_codec,
    load_program,
    program_of,
    stored_digests,
)


def programs(head: Head) -> Iterator[Violation]:
    """What is wrong with stored programs, and with versions that name one."""
    if head.dbs.programs is None:
        return
    named = _named(head)
    for digest in stored_digests(head.txn, head.dbs):
        where = f"programs/{digest.hex()[:12]}"
        if named.pop(digest, None) is None:
            yield Violation(PROGRAMS, where, "is stored, and no kept version names it")
        try:
            load_program(head.txn, head.dbs, digest)
        except CorruptRecordError as error:
            yield Violation(VALUES, where, str(error))
        else:
            yield from _pieces(head, digest, where)
    for version in named.values():
        yield Violation(PROGRAMS, version, "names a program that is not stored")


def _named(head: Head) -> dict[bytes, str]:
    """The digest of each program that a kept version names, and where one of them is."""
    named: dict[bytes, str] = {}
    for database, rows in (("modules", head.dbs.modules), ("history", head.dbs.history)):
        for key, record in head.rows(rows):
            digest = program_of(record)
            if digest:
                named[digest] = f"{database}/{text(key)}"
    for digest in held_programs(head.txn, head.dbs):  # versions of a cluster are to name them
        named.setdefault(digest, f"meta/held/{digest.hex()[:12]}")
    return named


def _pieces(head: Head, digest: bytes, where: str) -> Iterator[Violation]:
    """Pieces beyond those of the head. The head is intact."""
    value = head.txn.get(digest, None, head.dbs.programs)
    expected = head_codec.load(value, digest, head.dbs.format).pieces
    cursor = head.txn.cursor(head.dbs.programs)
    cursor.set_range(digest)
    found = 0
    for key in cursor.iternext(keys=True, values=False):
        if key[:DIGEST_BYTES] != digest:
            break
        found += len(key) > DIGEST_BYTES
    if found != expected:
        yield Violation(PROGRAMS, where, f"has {found} pieces, and its head says {expected}")
