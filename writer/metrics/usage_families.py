"""Usage as metric families. Pure: rows as they are stored in, families out.

The counters are the registry's own lifetime totals. They go on after a restart of the daemon, and a call that was
merged is counted in them exactly once, so no call is missing between a scrape and a kill.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dspy_registry.registry_store.duration_buckets import by_key, value_of
from dspy_registry.registry_store.outcome_kinds import FAILED, KINDS
from dspy_registry.registry_store.usage import Buckets, ModuleUsage, VersionUsage
from dspy_registry.registry_store.usage_rows import Row

BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds."""
_QUANTILES: Final = ("p50", "p90", "p99")


def module_families(rows: Iterable[Row]) -> Iterator[Metric]:
    """Of modules, over all their versions."""
    found = list(rows)
    yield from _counted("dspy_registry", ("module",), [((row.usage.name,), row.usage) for row in found])
    yield _durations(found)
    yield _last_use(found)


def version_families(versions: Iterable[VersionUsage]) -> Iterator[Metric]:
    """Of versions: those calls whose reports told their version."""
    found = list(versions)
    labelled = [((usage.name, str(usage.version)), usage) for usage in found]
    yield from _counted("dspy_registry_version", ("module", "version"), labelled)
    yield _window(found)


_Labelled = Iterable[tuple[tuple[str, ...], ModuleUsage | VersionUsage]]


def _counted(prefix: str, labels: tuple[str, ...], usages: _Labelled) -> Iterator[Metric]:
    of = "a module" if len(labels) == 1 else "a version"
    calls = CounterMetricFamily(f"{prefix}_calls", f"Calls of {of}, failed ones included.", labels=labels)
    failures = CounterMetricFamily(f"{prefix}_call_errors", f"Failed calls of {of}, by kind.", labels=(*labels, "kind"))
    tokens = CounterMetricFamily(f"{prefix}_tokens", f"Tokens of calls of {of}.", labels=(*labels, "direction"))
    cost = CounterMetricFamily(f"{prefix}_cost_dollars", f"Cost of the priced calls of {of}.", labels=labels)
    priced = CounterMetricFamily(f"{prefix}_priced_calls", f"Calls of {of} that told their cost.", labels=labels)
    for values, usage in usages:
        calls.add_metric(values, usage.calls)
        for kind, count in zip(KINDS, usage.kinds, strict=False):
            if kind in FAILED and count:
                failures.add_metric((*values, kind), count)
        tokens.add_metric((*values, "in"), usage.tokens_in)
        tokens.add_metric((*values, "out"), usage.tokens_out)
        cost.add_metric(values, usage.cost_usd)
        priced.add_metric(values, usage.priced_calls)
    yield from (calls, failures, tokens, cost, priced)


def _durations(rows: Iterable[Row]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "dspy_registry_call_duration_seconds",
        "Durations of the calls that completed, each to 1 %; so is their sum.",
        labels=("module",),
    )
    for row in rows:
        counts, total = histogram(row.durations)
        family.add_metric((row.usage.name,), counts, total)
    return family


def histogram(durations: Mapping[str, Buckets]) -> tuple[list[tuple[str, float]], float]:
    """Calls up to each of BOUNDS and in all, over all sizes of input, and the sum of all durations in seconds."""
    per_bound = [0] * (len(BOUNDS) + 1)
    total = 0.0
    for buckets in durations.values():
        for key, count in by_key(buckets).items():
            seconds = value_of(key) / 1000
            total += seconds * count
            per_bound[next((at for at, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))] += count
    counts, running = [], 0
    for bound, count in zip((*BOUNDS, float("inf")), per_bound, strict=True):
        running += count
        counts.append(("+Inf" if bound == float("inf") else str(float(bound)), float(running)))
    return counts, total


def _last_use(rows: Iterable[Row]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "dspy_registry_last_call_timestamp_seconds", "When the newest call of a module ended.", labels=("module",)
    )
    for row in rows:
        if row.usage.last_used:
            family.add_metric((row.usage.name,), row.usage.last_used / 1000)
    return family


def _window(versions: Iterable[VersionUsage]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(
        "dspy_registry_version_duration_seconds",
        "Percentiles of the last 1,024 to 2,048 durations of a version, by size of input.",
        labels=("module", "version", "size", "percentile"),
    )
    for usage in versions:
        for size, standing in usage.standing.items():
            for quantile in _QUANTILES:
                value = getattr(standing, quantile) / 1000
                family.add_metric((usage.name, str(usage.version), size, quantile[1:]), value)
    return family
