"""What follows the last @ of a name: `name@3` is a version, `name@champion` a label, `name@latest` the one in force.

The part before it resolves as any name does, first. A caller that selects a version knows the full name already.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate, takewhile
from typing import Final, NamedTuple

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.buckets import Run, bucket_in, hash_of
from dspy_registry.registry_store.codec import decode_record, open_record
from dspy_registry.registry_store.errors import CorruptRecordError, UnknownLabelError, UnknownVersionError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.labels import LATEST, label_names, load_label
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.registry_store.scan import items_from_last, items_with_prefix

_MOST_DIGITS: Final = len(str(layout.LAST_VERSION))


class Resolved(NamedTuple):
    """One version of one module: its full name, the version, and the label through which it was found ("": none).

    As text it is `name@version`, which any look-up takes.
    """

    name: str
    version: int
    label: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Selection:
    """What was asked, resolved as far as it can be without a key. `choose` gives the version for a key.

    `is_of_version`: a version or a label was asked for. False: the module, whose version in force this is.
    """

    __slots__ = ("_begun", "_chosen", "_ends", "_of_runs", "is_of_version")

    def __init__(
        self, name: str, version: int, label: str = "", runs: tuple[Run, ...] = (), *, is_of_version: bool = True
    ) -> None:
        self.is_of_version = is_of_version
        self._chosen = Resolved(name, version, label)
        self._ends = tuple(accumulate(length for _, length in runs))
        self._of_runs = tuple(Resolved(name, version, label) for version, _ in runs)
        self._begun = hash_of(name, label) if len(runs) > 1 else None

    def choose(self, key: str | None) -> Resolved:
        """The version for a key, the same in every process. None: the version with most buckets."""
        if key is None or self._begun is None:
            return self._chosen
        return self._of_runs[bisect_right(self._ends, bucket_in(self._begun, key))]


def split(asked: str) -> tuple[str, str]:
    """(name, selector) of what was asked. The selector is empty where there is no @."""
    name, found, selector = asked.rpartition("@")
    return (name, selector) if found else (asked, "")


def select(txn: Transaction, dbs: Databases, name: str, selector: str) -> Selection:
    """The selection of a registered module, of this full name. An empty selector means the version in force.

    Raises UnknownVersionError that lists the versions kept, UnknownLabelError that lists the labels,
    CorruptRecordError.
    """
    if selector.isascii() and selector.isdigit() and len(selector) <= _MOST_DIGITS:
        return Selection(name, load_version(txn, dbs, name, int(selector)).provenance.version)
    if selector in ("", LATEST):
        return Selection(name, version_in_force(txn, dbs, name), is_of_version=bool(selector))
    label = load_label(txn, dbs, name, selector)
    if label is None:
        raise UnknownLabelError(name, selector, label_names(txn, dbs, name))
    return Selection(name, label.heaviest, selector, label.runs)


def version_in_force(txn: Transaction, dbs: Databases, name: str) -> int:
    """The version in force of a registered module, of this full name. Raises CorruptRecordError."""
    return open_record(txn.get(name.encode(), None, dbs.modules), name).provenance.version


def load_version(txn: Transaction, dbs: Databases, name: str, version: int) -> StoredModule:
    """A version of a registered module, in force or kept in the history.

    Raises UnknownVersionError that lists what is kept, CorruptRecordError.
    """
    past = _past_record(txn, dbs, name, version)
    if past is not None:
        return decode_version(past, name, version)
    current = open_record(txn.get(name.encode(), None, dbs.modules), name)
    if current.provenance.version != version:
        kept = (current.provenance.version, *(number for number, _ in past_records(txn, dbs, name)))
        raise UnknownVersionError(name, version, kept)
    return current


def _past_record(txn: Transaction, dbs: Databases, name: str, version: int) -> bytes | None:
    if not 0 < version <= layout.LAST_VERSION:
        return None
    record: bytes | None = txn.get(layout.versioned_key(name, version), None, dbs.history)
    return record


def version_record(txn: Transaction, dbs: Databases, name: str, version: int) -> StoredModule | None:
    """A version of a full name, registered or not. None: it is not kept, or damaged."""
    past, current = _past_record(txn, dbs, name, version), txn.get(name.encode(), None, dbs.modules)
    try:
        if past is not None:
            return decode_version(past, name, version)
        stored = None if current is None else open_record(current, name)
    except CorruptRecordError:
        return None
    return stored if stored is not None and stored.provenance.version == version else None


def decode_version(record: bytes, name: str, version: int) -> StoredModule:
    """The record of a replaced version. Raises CorruptRecordError, for another version's record too."""
    stored = decode_record(record, f"{name}, version {version},")
    found = stored.info.name, stored.provenance.version
    if found != (name, version):
        raise CorruptRecordError(f"version {version} of {name} holds version {found[1]} of {found[0]} instead.")
    return stored


def past_records(
    txn: Transaction, dbs: Databases, name: str, *, oldest_first: bool = False
) -> Iterator[tuple[int, bytes]]:
    """(version, record) of the replaced versions of a full name, newest first or oldest first."""
    prefix = name.encode() + b"\0"
    for key, record in (items_with_prefix if oldest_first else items_from_last)(txn, dbs.history, prefix):
        if key[:-4] != prefix:  # the caller may ask for a name that holds a zero, as no kept one does
            return
        yield int.from_bytes(key[-4:], "big"), record


def kept_versions(txn: Transaction, dbs: Databases, name: str, but: range) -> list[int]:
    """The replaced versions of a full name, newest first; without those of `but`, which are not read."""
    above = [version for version, _ in takewhile(lambda row: row[0] >= but.stop, past_records(txn, dbs, name))]
    oldest = past_records(txn, dbs, name, oldest_first=True)
    return above + [version for version, _ in takewhile(lambda row: row[0] < but.start, oldest)][::-1]
