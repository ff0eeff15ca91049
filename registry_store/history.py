"""The versions kept of a module: the one in force, and those that were replaced. Readers and writer read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.codec import decode_record, encode, key_text
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layers import MERGED_FIELDS
from dspy_registry.registry_store.records import ModuleInfo, StoredModule, to_plain
from dspy_registry.registry_store.scan import groups_with_prefix, items_from_last


class KeptVersion(NamedTuple):
    """One version of the module `name`: its record's bytes, not decoded yet."""

    name: str
    version: int
    record: bytes

    def load(self) -> StoredModule:
        """The record. Raises CorruptRecordError naming the version."""
        stored = decode_record(self.record, f"{self.name}, version {self.version},")
        found = stored.info.name, stored.provenance.version
        if found != (self.name, self.version):
            raise CorruptRecordError(
                f"version {self.version} of {self.name} holds version {found[1]} of {found[0]} instead."
            )
        return stored


class Versions(NamedTuple):
    """The versions kept of a module, newest first; at least one. `in_force` is its version; 0: it is not registered."""

    name: str
    in_force: int
    kept: tuple[KeptVersion, ...]


def load_versions(txn: Transaction, dbs: Databases, asked: str) -> Versions:
    """The versions kept of a full name, an alias or a short name. An unregistered module is found by its full name.

    Records are not decoded yet, so `KeptVersion.load` finds a damaged one. Raises UnknownModuleError when nothing is
    kept, AmbiguousNameError.
    """
    name = lookup.resolve(txn, dbs, asked) or (asked if lookup.is_askable(asked) else "")
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


def past_records(txn: Transaction, dbs: Databases, name: str) -> Iterator[tuple[int, bytes]]:
    """(version, record) of the replaced versions of a full name, newest first."""
    prefix = name.encode() + b"\0"
    for key, record in items_from_last(txn, dbs.history, prefix):
        if key[:-4] != prefix:  # the caller may ask for a name that holds a zero, as no kept one does
            return
        yield int.from_bytes(key[-4:], "big"), record


def kept_names(txn: Transaction, dbs: Databases, start: str) -> Iterator[str]:
    """The full names that begin with `start` and have replaced versions, registered or not, in key order."""
    prefix = start.encode("utf-8", "surrogatepass")  # a surrogate begins no stored key
    for name in groups_with_prefix(txn, dbs.history, prefix, len(layout.versioned_key("", 0))):
        yield key_text(name)


def changed_fields(before: ModuleInfo, after: ModuleInfo) -> tuple[str, ...]:
    """The fields that differ; for requirements and metadata the keys, as in `requirements.memory`."""
    old, new = _flat(before), _flat(after)
    return tuple(field for field in {**new, **old} if old.get(field) != new.get(field))


def _flat(info: ModuleInfo) -> dict[str, bytes]:
    """Encoded, because 1 equals True but its bytes differ."""
    flat = {}
    for field, value in to_plain(info).items():
        keyed = {f"{field}.{key}": part for key, part in value.items()} if field in MERGED_FIELDS else {field: value}
        flat.update({key: encode(part) for key, part in keyed.items()})
    return flat
