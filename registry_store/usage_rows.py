"""The rows of the database `usage`: lifetime totals of each module, statistics of each version, reporters.

name                    lifetime totals of the module
name 00 version         what advice is made of, and durations; only in format 2, and only of versions that are kept
00 'r' reporter         the last batch that was merged of it
00 'lost'               how many calls no statistics hold
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import msgspec

from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import USAGE, versioned_key, versioned_prefix
from dspy_registry.registry_store.lifetime_durations import LifetimeDurations
from dspy_registry.registry_store.names import lookup_keys
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.scan import items_from, items_with_prefix
from dspy_registry.registry_store.selection import split, version_in_force
from dspy_registry.registry_store.statistics import Kept
from dspy_registry.registry_store.usage import Buckets, ModuleUsage, VersionUsage


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Of a module: what readers get, ready, and the counted durations it comes from. Readers decode the first only."""

    usage: ModuleUsage
    durations: dict[str, Buckets]


class VersionRow(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Of a version: what readers get, ready, and the state it comes from, by size class; and its life's durations."""

    usage: VersionUsage
    kept: dict[str, Kept]
    durations: LifetimeDurations = LifetimeDurations()


class _Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    usage: ModuleUsage


class _VersionHead(msgspec.Struct, array_like=True, frozen=True, gc=False):
    usage: VersionUsage


class VersionFigures(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Of a version, what metrics show of it. The state between is passed over, not decoded."""

    usage: VersionUsage
    kept: msgspec.Raw
    durations: LifetimeDurations = LifetimeDurations()


class Ledger(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is remembered of a reporter: its last batch merged, and when (milliseconds since the epoch).

    A large batch is merged in several commits. `reports` is how many of its reports are merged so far; 0: all.
    """

    number: int
    merged_at: int
    reports: int = 0


_FIELDS_OF_FORMAT_1: Final = 13


def _as_in_format_1(row: Row) -> tuple[Any, ...]:
    """With the fields that release 0.1.0 knows."""
    return msgspec.structs.astuple(row.usage)[:_FIELDS_OF_FORMAT_1], row.durations


row_codec = Sealed(Row, "a usage row", USAGE, _as_in_format_1)
version_codec = Sealed(VersionRow, "a usage row of a version", USAGE)
ledger_codec = Sealed(Ledger, "a usage reporter's row", USAGE)
lost_codec = Sealed(int, "the count of calls lost", USAGE)
_head_codec = Sealed(_Head, "a usage row", USAGE)
_version_head_codec = Sealed(_VersionHead, "a usage row of a version", USAGE)
_figures_codec = Sealed(VersionFigures, "a usage row of a version", USAGE)

# No name holds a control character, so these sort before every name.
LEDGER_PREFIX: Final = b"\0r"
LOST_KEY: Final = b"\0lost"
FIRST_NAME: Final = b"\x01"
_VERSION_BYTES: Final = len(versioned_key("", 0))


def ledger_key(reporter: bytes) -> bytes:
    """Key of what is remembered of a reporter."""
    return LEDGER_PREFIX + reporter


def version_of_key(key: bytes) -> tuple[str, int] | None:
    """(name, version) of the key of a version's row; None for any other key."""
    if len(key) <= _VERSION_BYTES or key[0] == 0 or key[-_VERSION_BYTES] != 0:
        return None
    return key[:-_VERSION_BYTES].decode("utf-8", "backslashreplace"), int.from_bytes(key[1 - _VERSION_BYTES :], "big")


def has_versions(dbs: Databases) -> bool:
    """Whether this registry's format has rows of versions."""
    return dbs.format > 1


def load_usage(txn: Transaction, dbs: Databases, name: str) -> ModuleUsage | None:
    """What is stored under exactly this name; None when nothing is. Raises CorruptRecordError."""
    if not lookup.is_askable(name) or "\0" in name:  # a version's key is no name
        return None
    key = name.encode()
    value = txn.get(key, None, dbs.usage)
    return None if value is None else usage_in(value, key, dbs.format)


def usage_in(value: bytes, key: bytes, format: int) -> ModuleUsage:
    """The usage in the bytes of the module's row under this key. Raises CorruptRecordError."""
    usage: ModuleUsage = _head_codec.load(value, key, format).usage
    return usage


def load_version_usage(txn: Transaction, dbs: Databases, name: str, version: int) -> VersionUsage:
    """What is stored of a version of the module of this full name; all zero when nothing is.

    Raises CorruptRecordError.
    """
    key = versioned_key(name, version)
    value = txn.get(key, None, dbs.usage) if has_versions(dbs) else None
    if value is None:
        return VersionUsage(name, version)
    usage: VersionUsage = _version_head_codec.load(value, key, dbs.format).usage
    return usage


class InForce(msgspec.Struct, frozen=True, gc=False):
    """A module and the usage of its version in force, or of the version that was asked for.

    `names` are those that its calls may have been reported by.
    """

    info: ModuleInfo
    usage: VersionUsage
    names: tuple[str, ...]
    is_in_force: bool = True


def load_in_force(txn: Transaction, dbs: Databases, asked: str) -> InForce:
    """By a full name, an alias or a short name, and the version after an @. Raises as `lookup.load_stored`."""
    stored = lookup.load_stored(txn, dbs, asked)
    name, version = stored.info.name, stored.provenance.version
    usage = load_version_usage(txn, dbs, name, version)
    names = tuple(dict.fromkeys((name, asked, split(asked)[0], *lookup_keys(name))))
    is_in_force = "@" not in asked or version == version_in_force(txn, dbs, name)
    return InForce(stored.info, usage, names, is_in_force)


def load_all(txn: Transaction, dbs: Databases) -> list[ModuleUsage]:
    """The usage of every module that has some, most used first. Raises CorruptRecordError."""
    rows = items_from(txn, dbs.usage, FIRST_NAME)
    found = [usage_in(value, key, dbs.format) for key, value in rows if version_of_key(key) is None]
    return sorted(found, key=lambda usage: (-usage.calls, usage.name))


def load_row(txn: Transaction, dbs: Databases, name: str) -> Row | None:
    """A module's whole row, with the counted durations; None when nothing is stored. Raises CorruptRecordError."""
    key = name.encode()
    value = txn.get(key, None, dbs.usage)
    return None if value is None else row_codec.load(value, key, dbs.format)


def load_versions_of(txn: Transaction, dbs: Databases, name: str, most: int) -> list[VersionFigures]:
    """The newest `most` versions of a module that were called, oldest first. A damaged one is left out."""
    if not has_versions(dbs):
        return []
    prefix = versioned_prefix(name)
    keys = [key for key, _ in items_with_prefix(txn, dbs.usage, prefix) if version_of_key(key) is not None]
    found = []
    for key in keys[-most:]:
        with contextlib.suppress(CorruptRecordError):
            found.append(_figures_codec.load(txn.get(key, None, dbs.usage), key, dbs.format))
    return found


def calls_lost(txn: Transaction, dbs: Databases) -> int:
    """Calls that reporters or the writer could not keep, over the registry's life."""
    value = txn.get(LOST_KEY, None, dbs.usage)
    return 0 if value is None else int(lost_codec.load(value, LOST_KEY, dbs.format))
