"""What leads to versions of modules in a new registry: labels, and the programs that versions name. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dspy_registry.registry_store.codec import decode_record, encode, seal_record
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import Label, label_codec
from dspy_registry.registry_store.layout import FORMAT_VERSION, HISTORY, HISTORY_VERSIONS, LABELS, PROGRAMS
from dspy_registry.registry_store.program_rows import cut, document_in, program_of, rows_of
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.writer.repair.account import Account
from dspy_registry.writer.repair.modules import Modules
from dspy_registry.writer.repair.reading import NEWEST, Found, Rows

_BACKUP = "the backup"


def labels(found: Found, modules: Modules, account: Account) -> Rows:
    """The labels all of whose versions are there. Earlier versions that they name are kept for them."""
    rows = {}
    for key, value in found.rows[LABELS].items():
        name = key.partition(b"\0")[0].decode()
        label: Label = label_codec.load(value, key, found.format)
        missing = _not_kept(modules, name, set(label.versions))
        if missing:
            account.lose(LABELS, key, missing)
            continue
        for version in label.versions:
            if version != modules.records[name].provenance.version:
                modules.past[name].setdefault(version, modules.history[name][version])
                account.kept(HISTORY, (name, version))
        rows[key] = label_codec.dump(label, key, FORMAT_VERSION)
        if (LABELS, key) in found.origin:
            account.took(LABELS, key, found.origin[LABELS, key])
    return rows


def _not_kept(modules: Modules, name: str, versions: Iterable[int]) -> str:
    """Why a label cannot stand; "": it can."""
    stored = modules.records.get(name)
    if stored is None:
        return "its module is lost"
    kept = modules.past.get(name, {})
    oldest = max(kept, default=0) - HISTORY_VERSIONS  # from here on, only labels keep versions
    for version in sorted(versions):
        if version >= modules.renumbered.get(name, version + 1):
            return f"version {version}, which it names, has another number now"
        is_there = version == stored.provenance.version or version in kept
        if not is_there and not (version <= oldest and version in modules.history.get(name, {})):
            return f"version {version}, which it names, is lost"
    return ""


def programs(found: Found, backup: Found, modules: Modules, account: Account) -> Rows:
    """The programs that versions name, as far as they are whole. A version whose program is lost names none."""
    rows: Rows = {}
    lost: dict[bytes, str] = {}
    for digest in _named(modules):
        document, origin = _document(found, digest), NEWEST
        if document is None:
            document, origin = _document(backup, digest), _BACKUP
        if document is None:
            lost[digest] = "a part of it cannot be read"
            continue
        rows.update(rows_of(digest, cut(document), FORMAT_VERSION))
        if origin != NEWEST:
            account.took(PROGRAMS, digest.hex()[:12], origin)
    for digest, reason in lost.items():
        account.lose(PROGRAMS, digest.hex()[:12], f"{reason}; it was of {', '.join(_forget(modules, digest)[:3])}")
    return rows


def _named(modules: Modules) -> list[bytes]:
    """The digests that kept versions name."""
    current = [stored.provenance.program for stored in modules.records.values()]
    past = [program_of(row) for rows in modules.past.values() for row in rows.values()]
    return sorted({digest for digest in (*current, *past) if digest})


def _document(source: Found, digest: bytes) -> bytes | None:
    """The document of a digest; None where it is not there whole."""
    try:
        return document_in(source.rows[PROGRAMS].get, digest, source.format)
    except CorruptRecordError:
        return None


def _forget(modules: Modules, digest: bytes) -> list[str]:
    """Let no version name this program any longer; which did."""
    told = []
    for name, stored in modules.records.items():
        if stored.provenance.program == digest:
            modules.records[name] = _without(stored)
            told.append(f"{name}, version {stored.provenance.version}")
    for name, rows in modules.past.items():
        for version, row in rows.items():
            if program_of(row) == digest:
                kept = _without(decode_record(row, name))
                rows[version] = seal_record(encode(kept.info), kept.provenance, FORMAT_VERSION)
                told.append(f"{name}, version {version}")
    return told


def _without(stored: StoredModule) -> StoredModule:
    return StoredModule(stored.info, msgspec.structs.replace(stored.provenance, program=b""))
