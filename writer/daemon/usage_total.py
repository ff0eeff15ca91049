"""The lifetime totals of one module while reports are added to them."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dspy_registry.registry_store.duration_buckets import added, as_buckets, by_key, quantiles
from dspy_registry.registry_store.reports import Report
from dspy_registry.registry_store.usage import HOURS_KEPT, LARGEST_COUNT, MINUTES_KEPT, SIZES, Buckets, Durations
from dspy_registry.registry_store.usage_rows import Row
from dspy_registry.writer.daemon.counting import Minutes, added_kinds, bounded


class UsageTotal:
    """Starts from a stored row. `row` gives the row to store."""

    def __init__(self, row: Row) -> None:
        kept = row.usage
        self._usage = kept
        self._minutes, self._hours = Minutes(kept.minutes), Minutes(kept.hours, 60)
        self._failed_minutes, self._failed_hours = Minutes(kept.failed_minutes), Minutes(kept.failed_hours, 60)
        self._buckets = dict(row.durations)
        self._added: dict[str, list[Buckets]] = {}

    def add(self, report: Report, now: int, too_short: int) -> None:
        """Add a report. `now`, in milliseconds since the epoch, bounds what the reporter's clock says.

        `too_short` of its timeouts count as the caller's own.
        """
        before = self._usage
        first_used = min(report.first_used, now)
        self._usage = msgspec.structs.replace(
            before,
            calls=bounded(before.calls + report.calls),
            errors=bounded(before.errors + max(0, report.errors - too_short)),
            first_used=min(before.first_used, first_used) if before.first_used else first_used,
            last_used=min(max(before.last_used, report.last_used), now),
            tokens_in=bounded(before.tokens_in + report.tokens_in),
            tokens_out=bounded(before.tokens_out + report.tokens_out),
            cost_usd=before.cost_usd + report.cost_usd,
            priced_calls=bounded(before.priced_calls + report.priced_calls),
            kinds=added_kinds(before.kinds, report.kinds, too_short),
        )
        for counted in (self._minutes, self._hours):
            counted.add(report.minutes, now)
        for counted in (self._failed_minutes, self._failed_hours):
            counted.add(report.failed, now)
            counted.take_back(too_short)
        for size, evidence in report.evidence.items():
            if size in SIZES:
                self._added.setdefault(size, []).append(evidence.completed)

    def row(self) -> Row:
        """The row with all reports added so far."""
        durations = dict(self._usage.durations)
        for size, parts in self._added.items():
            counts = _together((self._buckets.get(size, Buckets()), *parts))
            if counts:
                self._buckets[size] = as_buckets(counts)
                durations[size] = _summary(counts)
        self._added = {}
        usage = msgspec.structs.replace(
            self._usage,
            overall=self._overall(durations),
            durations={size: durations[size] for size in SIZES if size in durations},
            minutes=self._minutes.ring(MINUTES_KEPT),
            hours=self._hours.ring(HOURS_KEPT),
            failed_minutes=self._failed_minutes.ring(MINUTES_KEPT),
            failed_hours=self._failed_hours.ring(HOURS_KEPT),
        )
        return Row(usage, self._buckets)

    def _overall(self, durations: dict[str, Durations]) -> Durations:
        if len(durations) == 1:
            return next(iter(durations.values()))
        return _summary(_together(self._buckets.get(size, Buckets()) for size in durations))


def _together(parts: Iterable[Buckets]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for part in parts:
        if counts:
            added(counts, by_key(part).items())
        else:
            counts = by_key(part)
    if counts and max(counts.values()) > LARGEST_COUNT:
        return {key: min(count, LARGEST_COUNT) for key, count in counts.items()}
    return counts


def _summary(counts: dict[int, int]) -> Durations:
    return Durations(sum(counts.values()), *quantiles(counts, (0.5, 0.9, 0.99)))
