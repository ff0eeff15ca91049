"""The statistics of one module while reports are added to them."""

from __future__ import annotations

from collections import Counter

import msgspec

from dspy_registry.registry_store.duration_sketch import DurationSketch, together
from dspy_registry.registry_store.usage import (
    HOURS_KEPT,
    LARGEST_COUNT,
    MINUTES_KEPT,
    SIZES,
    Buckets,
    Durations,
    Report,
    Ring,
    Row,
)


class UsageTotal:
    """Starts from a stored row. `row` gives the row to store."""

    def __init__(self, row: Row) -> None:
        kept = row.usage
        self._usage = kept
        self._minutes, self._hours = _counter(kept.minutes), _counter(kept.hours)
        self._buckets = dict(row.durations)
        self._added: dict[str, list[Buckets]] = {}

    def add(self, report: Report, now: int) -> None:
        """Add a report. `now`, in milliseconds since the epoch, bounds what the reporter's clock says."""
        before = self._usage
        first_used = min(report.first_used, now)
        self._usage = msgspec.structs.replace(
            before,
            calls=_bounded(before.calls + report.calls),
            errors=_bounded(before.errors + report.errors),
            first_used=min(before.first_used, first_used) if before.first_used else first_used,
            last_used=min(max(before.last_used, report.last_used), now),
            tokens_in=_bounded(before.tokens_in + report.tokens_in),
            tokens_out=_bounded(before.tokens_out + report.tokens_out),
            cost_usd=before.cost_usd + report.cost_usd,
            priced_calls=_bounded(before.priced_calls + report.priced_calls),
        )
        for minute, calls in report.minutes:
            minute = min(minute, now // 60_000)
            self._minutes[minute] += calls
            self._hours[minute // 60] += calls
        self._follow_clock_back(now // 60_000)
        for size, buckets in report.durations.items():
            if size in SIZES:
                self._added.setdefault(size, []).append(buckets)

    def _follow_clock_back(self, minute: int) -> None:
        """Drop periods that are still to come. Counted while the clock was ahead, they would keep out all others."""
        for periods, newest in ((self._minutes, minute), (self._hours, minute // 60)):
            for period in [period for period in periods if period > newest]:
                del periods[period]

    def row(self) -> Row:
        """The row with all reports added so far."""
        durations = dict(self._usage.durations)
        for size, added in self._added.items():
            self._buckets[size] = together((self._buckets.get(size, Buckets()), *added))
            durations[size] = DurationSketch(self._buckets[size]).summary()
        self._added = {}
        usage = msgspec.structs.replace(
            self._usage,
            overall=self._overall(durations),
            durations={size: durations[size] for size in SIZES if size in durations},
            minutes=_ring(self._minutes, MINUTES_KEPT),
            hours=_ring(self._hours, HOURS_KEPT),
        )
        return Row(usage, self._buckets)

    def _overall(self, durations: dict[str, Durations]) -> Durations:
        if len(durations) == 1:
            return next(iter(durations.values()))
        return DurationSketch(together(self._buckets.get(size, Buckets()) for size in durations)).summary()


def _bounded(count: int) -> int:
    return min(count, LARGEST_COUNT)


def _counter(ring: Ring) -> Counter[int]:
    first = ring.last - len(ring.counts) + 1
    return Counter({first + at: calls for at, calls in enumerate(ring.counts)})


def _ring(periods: Counter[int], kept: int) -> Ring:
    """The newest `kept` periods, from the first of them that had a call."""
    last = max(periods, default=0)
    first = min((period for period in periods if period > last - kept), default=last)
    return Ring(last, tuple(_bounded(periods[period]) for period in range(first, last + 1)))
