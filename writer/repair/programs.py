"""The programs of a repaired registry: whole documents that a kept version names. Pure.

A version whose document is lost stays, without its program.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from dspy_registry.registry_store.codec import decode_record, encode, seal_record
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.layout import FORMAT_VERSION, HISTORY, MODULES, PROGRAMS
from dspy_registry.registry_store.program_rows import cut, document_in, program_of, rows_of
from dspy_registry.writer.repair.account import Account
from dspy_registry.writer.repair.reading import Found, Rows
from dspy_registry.writer.repair.soundness import version_key_parts

_LOST: Final = "its program is lost, and the version is kept without it"
_BACKUP: Final = "the backup"


def programs(found: Found, backup: Found, records: Rows, past: Rows, account: Account) -> Rows:
    """The rows of `programs`. Takes the program from each row of `records` and `past` whose document is lost."""
    kept: Rows = {}
    for digest in sorted({program_of(row) for rows in (records, past) for row in rows.values()} - {b""}):
        document = _document(digest, found) or _document(digest, backup)
        if document is None:
            _take_away(digest, records, past, account)
            continue
        if _document(digest, found) is None:
            account.took(PROGRAMS, digest.hex(), _BACKUP)
        kept.update(rows_of(digest, cut(document), FORMAT_VERSION))
    return kept


def _document(digest: bytes, source: Found) -> bytes | None:
    try:
        return document_in(source.rows[PROGRAMS].get, digest, source.format)
    except CorruptRecordError:
        return None


def _take_away(digest: bytes, records: Rows, past: Rows, account: Account) -> None:
    for database, rows in ((MODULES, records), (HISTORY, past)):
        for key, row in _naming(digest, rows).items():
            rows[key] = row
            account.lose(PROGRAMS, version_key_parts(key) if database == HISTORY else key, _LOST)


def _naming(digest: bytes, rows: Mapping[bytes, bytes]) -> Rows:
    """The rows that name a document, without it."""
    changed = {}
    for key, row in rows.items():
        if program_of(row) == digest:
            stored = decode_record(row, "")
            provenance = msgspec.structs.replace(stored.provenance, program=b"")
            changed[key] = seal_record(encode(stored.info), provenance, FORMAT_VERSION)
    return changed
