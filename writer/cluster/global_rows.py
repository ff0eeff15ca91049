"""What this host knows of global records, read through a draft: rows of one key, of a name, of a kind."""

from __future__ import annotations

from collections.abc import Iterator

from dspy_registry.registry_store.cluster_rows import VERSIONS, GlobalRow, global_row_codec, row_key
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.layout import HISTORY, LABELS, versioned_key
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.registry_store.selection import decode_version
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.draft import Draft


def load_row(draft: Draft, key: bytes) -> GlobalRow | None:
    """What this host knows of a global record; None: nothing, or its row is damaged."""
    stored = draft.cluster_row(key)
    if stored is None:
        return None
    try:
        row: GlobalRow = global_row_codec.load(stored, key, draft.catalog.format)
    except CorruptRecordError:
        return None
    return row


def rows(catalog: Catalog, kind: bytes = b"", beginning: bytes = b"") -> Iterator[tuple[bytes, GlobalRow]]:
    """(key, row) of what this host knows of global records, of one kind or of all. Damaged rows are left out."""
    for place, stored in catalog.cluster_rows(row_key(kind, beginning)):
        try:
            yield place, global_row_codec.load(stored, place, catalog.format)
        except CorruptRecordError:
            continue


def part_key(name: str, part: str) -> bytes:
    """The key of a label or a version among the global records: all of one name are adjacent."""
    return f"{name}\0{part}".encode()


def version_key(name: str, version: int) -> bytes:
    """The key of a version among the global records, in digits: it is text, as all of these keys are."""
    return part_key(name, f"{version:010}")


def split_part(key: str) -> tuple[str, str]:
    """The reverse: the name, and the label or the version's digits."""
    name, _, part = key.partition("\0")
    return name, part


def label_rows(draft: Draft, name: str) -> dict[str, GlobalRow]:
    """What this host has applied of the global labels of a module, by label."""
    return _parts(draft, LABELS, name)


def version_rows(draft: Draft, name: str) -> dict[int, GlobalRow]:
    """What this host has applied of the versions that the cluster keeps of a module, by version."""
    return {int(part): row for part, row in _parts(draft, VERSIONS, name).items() if part.isdigit()}


def _parts(draft: Draft, kind: bytes, name: str) -> dict[str, GlobalRow]:
    prefix = part_key(name, "")
    found = rows(draft.catalog, kind, prefix)
    return {place[len(row_key(kind, prefix)) :].decode("utf-8", "replace"): row for place, row in found}


def stored_version(catalog: Catalog, name: str, version: int) -> StoredModule | None:
    """A version as this host has stored it, in force or in its history. None: it has none that can be read."""
    record = catalog.row(HISTORY, versioned_key(name, version))
    try:
        if record is not None:
            return decode_version(record, name, version)
        current = catalog.module(name)
    except CorruptRecordError:
        return None
    return current if current is not None and current.provenance.version == version else None


def named(kind: bytes, key: bytes) -> str:
    """A global record, for people."""
    name, _, part = key.decode("utf-8", "replace").partition("\0")
    return f"{kind.decode('ascii', 'replace')}/{name}{'@' * bool(part)}{part.lstrip('0')}"
