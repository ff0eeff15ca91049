"""The statistics of one version of a module while reports are added to them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from dspy_registry.registry_store.reports import Report
from dspy_registry.registry_store.statistics import Statistics
from dspy_registry.registry_store.usage import MINUTES_KEPT, SIZES
from dspy_registry.registry_store.usage_rows import VersionRow
from dspy_registry.writer.daemon.counting import Minutes, added_kinds, bounded

Ceiling = Callable[[str], float]
"""The largest limit for an input of a size class, in milliseconds."""


class VersionTotal:
    """Starts from a stored row. `row` gives the row to store."""

    def __init__(self, row: VersionRow, ceiling: Ceiling) -> None:
        self._usage = row.usage
        self._kept = dict(row.kept)
        self._durations = row.durations
        self._ceiling = ceiling
        self._statistics: dict[str, Statistics] = {}
        self._evaluated, self._failed = Minutes(row.usage.evaluated), Minutes(row.usage.failed)

    def add(self, report: Report, now: int) -> int:
        """Add a report; of its timeouts, how many say nothing about the provider. `now` bounds what clocks say."""
        too_short = self._merge_evidence(report)
        before = self._usage
        first_used = min(report.first_used, now)
        self._usage = msgspec.structs.replace(
            before,
            calls=bounded(before.calls + report.calls),
            errors=bounded(before.errors + max(0, report.errors - too_short)),
            first_used=min(before.first_used, first_used) if before.first_used else first_used,
            last_used=max(before.last_used, min(report.last_used, now)),
            tokens_in=bounded(before.tokens_in + report.tokens_in),
            tokens_out=bounded(before.tokens_out + report.tokens_out),
            cost_usd=before.cost_usd + report.cost_usd,
            priced_calls=bounded(before.priced_calls + report.priced_calls),
            kinds=added_kinds(before.kinds, report.kinds, too_short),
        )
        for minutes, sign in ((report.minutes, 1), (report.uncounted, -1)):
            self._evaluated.add(minutes, now, sign)
        self._failed.add(report.failed, now)
        for counted in (self._evaluated, self._failed):
            counted.take_back(too_short)
        return too_short

    def row(self) -> VersionRow:
        """The row with all reports added so far."""
        standing = dict(self._usage.standing)
        for size, statistics in self._statistics.items():
            self._kept[size] = statistics.kept()
            standing[size] = statistics.standing()
        usage = msgspec.structs.replace(
            self._usage,
            standing=standing,
            evaluated=self._evaluated.ring(MINUTES_KEPT),
            failed=self._failed.ring(MINUTES_KEPT),
        )
        return VersionRow(usage, self._kept, self._durations)

    def _merge_evidence(self, report: Report) -> int:
        too_short = 0
        for size, evidence in report.evidence.items():
            if size in SIZES:
                if size not in self._statistics:
                    self._statistics[size] = Statistics(self._kept.get(size))
                too_short += self._statistics[size].merge(evidence, self._ceiling(size))
                self._durations = self._durations.with_calls(evidence.completed)
        return too_short
