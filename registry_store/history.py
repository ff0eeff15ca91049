"""The versions that are kept of a module: the one in force, and those that it replaced. Both sides read them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from dspy_registry.registry_store import layout, lookup
from dspy_registry.registry_store.codec import encode, open_record
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layers import MERGED_FIELDS
from dspy_registry.registry_store.records import ModuleInfo, StoredModule, to_plain


class KeptVersion(NamedTuple):
    """One version of the module `name`: its record's bytes, not decoded yet."""

    name: str
    version: int
    record: bytes

    def load(self) -> StoredModule:
        """The record. Raises CorruptRecordError naming the version."""
        stored = open_record(self.record, f"{self.name}, version {self.version},")
        found = stored.info.name, stored.provenance.version
        if found != (self.name, self.version):
            raise CorruptRecordError(
                f"version {self.version} of {self.name} holds version {found[1]} of {found[0]} instead."
            )
        return stored


class Versions(NamedTuple):
    """What is kept of a module: `kept` newest first, never empty. `in_force` is 0 when it is not registered."""

    name: str
    in_force: int
    kept: tuple[KeptVersion, ...]


def load_versions(txn: Transaction, dbs: Databases, asked: str) -> Versions:
    """All versions that are kept of a full name, an alias or a short name; of an unregistered module by its full name.

    Damaged records are found only when they are loaded. Raises UnknownModuleError when there is none,
    AmbiguousNameError.
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
    """The version of a module's record; that of a damaged one follows from the last that it replaced."""
    try:
        return open_record(record, "").provenance.version
    except CorruptRecordError:
        return last + 1


def past_records(txn: Transaction, dbs: Databases, name: str) -> Iterator[tuple[int, bytes]]:
    """(version, record) of the replaced versions of a full name, newest first."""
    prefix = name.encode() + b"\0"
    cursor = txn.cursor(dbs.history)
    after = cursor.set_range(prefix[:-1] + b"\1")  # no name holds a control character
    found = cursor.prev() if after else cursor.last()
    while found and cursor.key()[:-4] == prefix:
        yield int.from_bytes(cursor.key()[-4:], "big"), cursor.value()
        found = cursor.prev()


def kept_names(txn: Transaction, dbs: Databases, start: str) -> Iterator[str]:
    """Full names that begin so and of which the history keeps something, registered or not, in key order."""
    cursor = txn.cursor(dbs.history)
    found = cursor.set_range(start.encode()) if start else cursor.first()
    while found and cursor.key().startswith(start.encode()):
        name = cursor.key()[: -len(layout.versioned_key("", 0))]
        yield name.decode()
        found = cursor.set_range(name + b"\1")


def changed_fields(before: ModuleInfo, after: ModuleInfo) -> tuple[str, ...]:
    """Which fields differ; of requirements and metadata which keys, as in `requirements.memory`."""
    old, new = _flat(before), _flat(after)
    return tuple(field for field in {**new, **old} if old.get(field) != new.get(field))


def _flat(info: ModuleInfo) -> dict[str, bytes]:
    """As bytes: 1 is not True."""
    flat = {}
    for field, value in to_plain(info).items():
        keyed = {f"{field}.{key}": part for key, part in value.items()} if field in MERGED_FIELDS else {field: value}
        flat.update({key: encode(part) for key, part in keyed.items()})
    return flat
