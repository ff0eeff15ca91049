"""Merging the reports of workers into the rows of `usage`, in the same draft as other changes.

A batch is merged once: the number of each reporter's last batch is stored in the same transaction. The values of a
batch are bounded when it is decoded, so none of them can fail here. A row that cannot be read starts from zero, and
does not stop the writer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from dspy_registry.registry_store import usage
from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.usage import Batch, Ledger, ModuleUsage, Row
from dspy_registry.registry_store.validation import name_problems
from dspy_registry.writer.daemon.usage_total import UsageTotal
from dspy_registry.writer.draft import Draft

REPORTERS_KEPT: Final = 4096
UNREGISTERED_KEPT: Final = 8192
"""Rows of unregistered names. Beyond that number, calls of such names are only counted as lost."""

_FORGET_EVERY: Final = 256  # new reporters

_log = logging.getLogger("dspy_registry")


class UsageMerger:
    """Merges batches for the daemon's lifetime."""

    def __init__(self) -> None:
        self._new_reporters = _FORGET_EVERY  # so that the first merge looks at the reporters of former daemons

    def stage(self, draft: Draft, batches: Iterable[Batch], now: int | None = None) -> None:
        """Stage batches on a draft. `now` is in milliseconds since the epoch. None: the clock's time."""
        merge = _Merge(draft, time.time_ns() // 1_000_000 if now is None else now)
        for batch in batches:
            merge.add(batch)
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
        self._names: dict[tuple[str, ...], str | None] = {}
        self._numbers: dict[bytes, int] = {}
        self._merged: set[bytes] = set()
        self._lost = 0
        self._room = UNREGISTERED_KEPT + REPORTERS_KEPT - draft.catalog.unregistered_usage()
        self.new_reporters = 0

    def add(self, batch: Batch) -> None:
        if batch.number <= self._last_number(batch.reporter):
            return
        self._numbers[batch.reporter] = batch.number
        self._merged.add(batch.reporter)
        self._lost += batch.lost
        for report in batch.reports:
            name = self._name(report.names)
            if name is None:
                self._lost += report.calls
            else:
                self._total(name).add(report, self._now)

    def stage(self) -> None:
        staged = self._draft.usage
        for name, total in self._totals.items():
            staged[name.encode()] = usage.row_codec.dump(total.row())
        for reporter in self._merged:
            ledger = Ledger(self._numbers[reporter], self._now)
            staged[usage.ledger_key(reporter)] = usage.ledger_codec.dump(ledger)
        if self._lost:
            lost = (_load(self._draft, usage.LOST_KEY, usage.lost_codec) or 0) + self._lost
            staged[usage.LOST_KEY] = usage.lost_codec.dump(min(lost, usage.LARGEST_COUNT))

    # Names

    def _name(self, names: tuple[str, ...]) -> str | None:
        if names not in self._names:
            self._names[names] = self._row_name([name for name in names if not name_problems(name)])
        return self._names[names]

    def _row_name(self, names: list[str]) -> str | None:
        """The registered module among these names, else the first name while there is room for unregistered ones."""
        for name in names:
            if self._draft.module(name) is not None:
                return name
        for name in names:
            registered = self._draft.catalog.registered_name(name)
            if registered is not None:
                return registered
        if not names or self._draft.usage_row(names[0].encode()) is not None:
            return names[0] if names else None
        self._room -= 1
        return names[0] if self._room >= 0 else None

    # What is stored

    def _total(self, name: str) -> UsageTotal:
        if name not in self._totals:
            row: Row | None = _load(self._draft, name.encode(), usage.row_codec)
            self._totals[name] = UsageTotal(row or Row(ModuleUsage(name), {}))
        return self._totals[name]

    def _last_number(self, reporter: bytes) -> int:
        if reporter not in self._numbers:
            ledger: Ledger | None = _load(self._draft, usage.ledger_key(reporter), usage.ledger_codec)
            self._numbers[reporter] = ledger.number if ledger else 0
            self.new_reporters += ledger is None
        return self._numbers[reporter]


def forget_reporters(draft: Draft, kept: int = REPORTERS_KEPT) -> None:
    """When there are more than `kept`, forget the half silent for longest, whose processes have probably ended."""
    known: list[tuple[int, bytes]] = []
    for key, _ in draft.catalog.usage_rows(usage.LEDGER_PREFIX):
        ledger: Ledger | None = _load(draft, key, usage.ledger_codec)
        known.append((ledger.merged_at if ledger else 0, key))
    if len(known) > kept:
        for _, key in sorted(known)[: len(known) // 2]:
            draft.usage[key] = None


def _load(draft: Draft, key: bytes, codec: Sealed) -> Any:
    row = draft.usage_row(key)
    try:
        return None if row is None else codec.load(row)
    except CorruptRecordError as error:
        _log.warning("%s Its statistics start from zero.", error)
        return None
