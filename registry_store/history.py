"""The versions kept of a module: the one in force, and those that were replaced. Readers and writer read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.codec import decode_record, encode, key_text
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layers import MERGED_FIELDS
from dspy_registry.registry_store.records import ModuleInfo, StoredModule, to_plain
from dspy_registry.registry_store.scan import groups_with_prefix
from dspy_registry.registry_store.selection import decode_version, past_records, split


class KeptVersion(msgspec.Struct, frozen=True, gc=False):
    """One version of the module `name`: its record's bytes, not decoded yet."""

    name: str
    version: int
    record: bytes

    def load(self) -> StoredModule:
        """The record. Raises CorruptRecordError naming the version."""
        return decode_version(self.record, self.name, self.version)


class Versions(msgspec.Struct, frozen=True, gc=False):
    """The versions kept of a module, newest first; at least one. `in_force` is its version; 0: it is not registered."""

    name: str
    in_force: int
    kept: tuple[KeptVersion, ...]


def load_versions(txn: Transaction, dbs: Databases, asked: str) -> Versions:
    """The versions kept of a full name, an alias or a short name. An unregistered module is found by its full name.

    What follows an @ is left out. Records are not decoded yet, so `KeptVersion.load` finds a damaged one. Raises
    UnknownModuleError when nothing is kept, AmbiguousNameError.
    """
    name = lookup.resolve(txn, dbs, asked) or lookup.resolve(txn, dbs, split(asked)[0])
    name = name or (asked if lookup.is_askable(asked) else "")
    past = tuple(KeptVersion(name, *row) for row in past_records(txn, dbs, name)) if name else ()
    record = txn.get(name.encode(), None, dbs.modules) if name else None
    if record is not None:
        in_force = _version_of(record, past[0].version if past else 0)
        return Versions(name, in_force, (KeptVersion(name, in_force, record), *past))
    if not past:
        raise lookup.unknown(txn, dbs, asked)
    return Versions(name, 0, past)


def _version_of(record: bytes, last: int) -> int:
    """The version of the record in force. `last` is the version that it replaced, for a record that is damaged."""
    try:
        return decode_record(record, "").provenance.version
    except CorruptRecordError:
        return last + 1


def kept_names(txn: Transaction, dbs: Databases, start: str) -> Iterator[str]:
    """The full names that begin with `start` and have replaced versions, registered or not, in key order."""
    prefix = start.encode("utf-8", "surrogatepass")  # a surrogate begins no stored key
    for name in groups_with_prefix(txn, dbs.history, prefix, len(layout.versioned_key("", 0))):
        yield key_text(name)


def changed_values(before: ModuleInfo, after: ModuleInfo) -> dict[str, tuple[Any, Any]]:
    """The old and the new value of each field that differs. None: the key is not there, or it is null.

    For requirements and metadata the keys are fields, as in `requirements.memory`.
    """
    old, new = _flat(before), _flat(after)
    return {
        field: (old.get(field), new.get(field))
        for field in {**new, **old}
        if _encoded(old, field) != _encoded(new, field)
    }


def changed_between(before: StoredModule, after: StoredModule) -> dict[str, tuple[Any, Any]]:
    """`changed_values`, and under `program` the SHA-256 of each program in hexadecimal, where they differ."""
    changed = changed_values(before.info, after.info)
    programs = tuple(kept.provenance.program.hex() or None for kept in (before, after))
    return changed if programs[0] == programs[1] else {**changed, "program": (programs[0], programs[1])}


def _encoded(flat: dict[str, Any], field: str) -> bytes | None:
    """Encoded, because 1 equals True but its bytes differ."""
    return encode(flat[field]) if field in flat else None


def _flat(info: ModuleInfo) -> dict[str, Any]:
    flat = {}
    for field, value in to_plain(info).items():
        keyed = {f"{field}.{key}": part for key, part in value.items()} if field in MERGED_FIELDS else {field: value}
        flat.update(keyed)
    return flat
