"""Merging the reports of workers into the rows of `usage`, in the same draft as other changes.

Every call counts in the lifetime totals of its name. It counts for a version too when the module is registered, the
version is kept, and all calls of its report were of that version. A mixture must not become a version's statistics.

A batch is merged once: the number of each reporter's last batch is stored in the same transaction. A large batch takes
several, and how far it is merged is stored with the number. The values of a batch are bounded when it is decoded, so
none of them can fail here. A row that cannot be read starts from zero, and does not stop the writer.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from dspy_registry.registry_store import usage_rows
from dspy_registry.registry_store.advice import declared_timeout, default_ceiling
from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import LATEST
from dspy_registry.registry_store.layout import versioned_key
from dspy_registry.registry_store.policy import effective_policy
from dspy_registry.registry_store.policy_rows import declarations
from dspy_registry.registry_store.reports import Batch, EncodedBatch, Report, read_report
from dspy_registry.registry_store.selection import split
from dspy_registry.registry_store.usage import LARGEST_COUNT, ModuleUsage, VersionUsage
from dspy_registry.registry_store.usage_rows import Ledger, Row, VersionRow
from dspy_registry.registry_store.validation import stored_name_problems
from dspy_registry.writer.daemon.usage_total import UsageTotal
from dspy_registry.writer.daemon.version_total import VersionTotal
from dspy_registry.writer.draft import Draft

REPORTERS_KEPT: Final = 4096
UNREGISTERED_KEPT: Final = 8192
"""Rows of unregistered names. Beyond that number, calls of such names are only counted as lost."""

PART_BYTES: Final = 8 * 1024
"""Encoded bytes of reports that one commit merges. A dense kilobyte takes some 0.7 ms, and others wait meanwhile."""

_FORGET_EVERY: Final = 256  # new reporters

_log = logging.getLogger("dspy_registry")


class UsageMerger:
    """Merges batches for the daemon's lifetime."""

    def __init__(self) -> None:
        self._new_reporters = _FORGET_EVERY  # so that the first merge looks at the reporters of former daemons

    def stage(self, draft: Draft, batches: Iterable[Batch], now: int | None = None) -> None:
        """Stage batches on a draft. `now` is in milliseconds since the epoch. None: the clock's time."""
        merge = self._begun(draft, now)
        for batch in batches:
            merge.add(batch.reporter, batch.number, batch.reports, batch.lost)
        self._end(draft, merge)

    def stage_some(
        self, draft: Draft, batches: Sequence[EncodedBatch], most: int = PART_BYTES, now: int | None = None
    ) -> int:
        """Stage the first reports of these batches that are not merged yet: about `most` bytes, at least one.

        Returns how many batches are merged as a whole then, the first ones.
        """
        merge = self._begun(draft, now)
        merge.room = most
        whole = 0
        for batch in batches:
            if not merge.add(batch.reporter, batch.number, batch.reports, batch.lost):
                break
            whole += 1
        self._end(draft, merge)
        return whole

    def _begun(self, draft: Draft, now: int | None) -> _Merge:
        return _Merge(draft, time.time_ns() // 1_000_000 if now is None else now)

    def _end(self, draft: Draft, merge: _Merge) -> None:
        merge.stage()
        self._new_reporters += merge.new_reporters
        if self._new_reporters >= _FORGET_EVERY:
            self._new_reporters = 0
            forget_reporters(draft)


class _Merge:
    """The batches of one commit."""

    def __init__(self, draft: Draft, now: int) -> None:
        self._draft = draft
        self._now = now
        self._totals: dict[str, UsageTotal] = {}
        self._versions: dict[tuple[str, int], VersionTotal] = {}
        self._names: dict[tuple[str, ...], str | None] = {}
        self._progress: dict[bytes, tuple[int, int]] = {}
        self._merged: set[bytes] = set()
        self._lost = 0
        self._places: int | None = None
        self.room: float = math.inf
        """Bytes of encoded reports that may still be added. The last report may exceed it."""
        self.new_reporters = 0

    def add(self, reporter: bytes, number: int, reports: Sequence[Report | msgspec.Raw], lost: int) -> bool:
        """Add what is not merged yet of a batch, while there is room. Returns whether it is merged as a whole then."""
        last, merged = self._progress_of(reporter)
        if number < last or (number == last and not merged):
            return True
        begin = merged if number == last else 0
        for at in range(begin, len(reports)):
            if self.room <= 0:
                if at > begin:
                    self._note(reporter, number, at)
                return False
            self._add_report(reports[at])
        self._lost += lost
        self._note(reporter, number, 0)
        return True

    def _note(self, reporter: bytes, number: int, merged: int) -> None:
        self._progress[reporter] = number, merged
        self._merged.add(reporter)

    def _add_report(self, given: Report | msgspec.Raw) -> None:
        report = given
        if isinstance(report, msgspec.Raw):
            self.room -= len(memoryview(report))
            report = read_report(report)
        name = self._name(report.names)
        if name is None:
            self._lost += report.calls
        else:
            version = self._version(name, report)
            too_short = 0 if version is None else version.add(report, self._now)
            self._total(name).add(report, self._now, too_short)

    def stage(self) -> None:
        for name, total in self._totals.items():
            _store(self._draft, name.encode(), usage_rows.row_codec, total.row())
        for (name, number), version in self._versions.items():
            _store(self._draft, versioned_key(name, number), usage_rows.version_codec, version.row())
        for reporter in self._merged:
            number, merged = self._progress[reporter]
            ledger = Ledger(number, self._now, merged)
            _store(self._draft, usage_rows.ledger_key(reporter), usage_rows.ledger_codec, ledger)
        if self._lost:
            lost = (_load(self._draft, usage_rows.LOST_KEY, usage_rows.lost_codec) or 0) + self._lost
            _store(self._draft, usage_rows.LOST_KEY, usage_rows.lost_codec, min(lost, LARGEST_COUNT))

    # Names

    def _name(self, names: tuple[str, ...]) -> str | None:
        if names not in self._names:
            self._names[names] = self._row_name([name for name in names if not stored_name_problems(name)])
        return self._names[names]

    def _row_name(self, names: list[str]) -> str | None:
        """The registered module among these names, else the one that discovery found to be the class of such a name.

        Else the first name, while there is room for unregistered ones.
        """
        for name in names:
            if self._draft.module(name) is not None:
                return name
        for find in (self._draft.catalog.registered_name, self._draft.catalog.name_of_class):
            for name in names:
                registered = find(name)
                if registered is not None:
                    return registered
        if not names or self._draft.usage_row(names[0].encode()) is not None:
            return names[0] if names else None
        if self._places is None:
            kept = UNREGISTERED_KEPT + REPORTERS_KEPT
            self._places = kept - self._draft.catalog.unregistered_usage(kept)
        self._places -= 1
        return names[0] if self._places >= 0 else None

    # Versions

    def _version(self, name: str, report: Report) -> VersionTotal | None:
        """The version that all calls of a report were of. None: there is none that is kept, or they are a mixture."""
        catalog = self._draft.catalog
        if not usage_rows.has_versions(catalog.dbs):
            return None
        number = report.version or self._asked_version(name, report.names)
        if not number:
            first, last = (catalog.version_at(name, min(at, self._now)) for at in report.began)
            number = first if first == last else 0
        key = name, number
        if key not in self._versions and number > 0 and catalog.is_kept(name, number):
            row: VersionRow | None = _load(self._draft, versioned_key(name, number), usage_rows.version_codec)
            self._versions[key] = VersionTotal(
                row or VersionRow(VersionUsage(name, number), {}), partial(self._ceiling, name)
            )
        return self._versions.get(key)

    def _asked_version(self, name: str, names: tuple[str, ...]) -> int:
        """The version after the @ of the first of these names that means the module. 0: the one in force.

        A label with weights is a mixture: -1.
        """
        asked = next(
            (each for each in names if "@" in each and self._draft.catalog.registered_name(each) == name), name
        )
        selector = split(asked)[1] if asked != name else ""
        if selector in ("", LATEST):
            return 0
        if selector.isascii() and selector.isdigit():
            return int(selector)
        label = self._draft.labels_of(name).get(selector)
        return label.runs[0][0] if label is not None and len(label.versions) == 1 else -1

    def _ceiling(self, name: str, size: str) -> float:
        current = self._draft.module(name)
        declared = declarations(self._draft.all_policies())
        longest = effective_policy(declared, name, current.info.pool_type if current else "").max_timeout
        if longest is not None:
            return longest * 1000
        return default_ceiling(0.0 if current is None else declared_timeout(current.info.estimated_duration, size))

    # What is stored

    def _total(self, name: str) -> UsageTotal:
        if name not in self._totals:
            row: Row | None = _load(self._draft, name.encode(), usage_rows.row_codec)
            self._totals[name] = UsageTotal(row or Row(ModuleUsage(name), {}))
        return self._totals[name]

    def _progress_of(self, reporter: bytes) -> tuple[int, int]:
        """The number of a reporter's last batch, and how many of its reports are merged; 0: all."""
        if reporter not in self._progress:
            ledger: Ledger | None = _load(self._draft, usage_rows.ledger_key(reporter), usage_rows.ledger_codec)
            self._progress[reporter] = (ledger.number, ledger.reports) if ledger else (0, 0)
            self.new_reporters += ledger is None
        return self._progress[reporter]


def forget_reporters(draft: Draft, kept: int = REPORTERS_KEPT) -> None:
    """When there are more than `kept`, forget the half silent for longest, whose processes have probably ended."""
    known: list[tuple[int, bytes]] = []
    for key, _ in draft.catalog.usage_rows(usage_rows.LEDGER_PREFIX):
        ledger: Ledger | None = _load(draft, key, usage_rows.ledger_codec)
        known.append((ledger.merged_at if ledger else 0, key))
    if len(known) > kept:
        for _, key in sorted(known)[: len(known) // 2]:
            draft.usage[key] = None


def _store(draft: Draft, key: bytes, codec: Sealed, value: Any) -> None:
    draft.usage[key] = codec.dump(value, key, draft.catalog.format)


def _load(draft: Draft, key: bytes, codec: Sealed) -> Any:
    row = draft.usage_row(key)
    try:
        return None if row is None else codec.load(row, key, draft.catalog.format)
    except CorruptRecordError as error:
        _log.warning("%s Its statistics start from zero.", error)
        return None
