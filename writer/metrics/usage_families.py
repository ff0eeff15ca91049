"""Usage as metric families. Pure: rows as they are stored in, families out.

The counters are the registry's own lifetime totals. They go on after a restart of the daemon, and a call that was
merged is counted in them exactly once, so no call is missing between a scrape and a kill.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from itertools import accumulate
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from dspy_registry.registry_store.lifetime_durations import BOUNDS, LifetimeDurations
from dspy_registry.registry_store.outcome_kinds import FAILED, KINDS
from dspy_registry.registry_store.usage import Buckets, ModuleUsage, VersionUsage
from dspy_registry.registry_store.usage_rows import Row, VersionFigures

_BOUND_LABELS: Final = (*(str(float(bound)) for bound in BOUNDS), "+Inf")
_QUANTILES: Final = ("p50", "p90", "p99")


def module_families(rows: Iterable[Row]) -> Iterator[Metric]:
    """Of modules, over all their versions."""
    found = list(rows)
    yield from _counted("dspy_registry", ("module",), [((row.usage.name,), row.usage) for row in found])
    durations = [((row.usage.name,), together(row.durations)) for row in found]
    yield _durations("dspy_registry_call_duration_seconds", "a module", ("module",), durations)
    yield _last_use(found)


def version_families(versions: Iterable[VersionFigures]) -> Iterator[Metric]:
    """Of versions: those calls whose version is known."""
    found = list(versions)
    labels = ("module", "version")
    values = [(each.usage.name, str(each.usage.version)) for each in found]
    usages = [each.usage for each in found]
    yield from _counted("dspy_registry_version", labels, zip(values, usages, strict=True))
    durations = zip(values, (each.durations for each in found), strict=True)
    yield _durations("dspy_registry_version_call_duration_seconds", "a version", labels, durations)
    yield _window(usages)


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


def _durations(
    name: str, of: str, labels: tuple[str, ...], found: Iterable[tuple[tuple[str, ...], LifetimeDurations]]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        name, f"Durations of the calls of {of} that completed, each to 1 %; so is their sum.", labels=labels
    )
    for values, durations in found:
        family.add_metric(values, up_to_bounds(durations), durations.seconds)
    return family


def together(by_size: Mapping[str, Buckets]) -> LifetimeDurations:
    """Over all sizes of input."""
    return reduce(LifetimeDurations.with_calls, by_size.values(), LifetimeDurations())


def up_to_bounds(durations: LifetimeDurations) -> list[tuple[str, float]]:
    """Calls up to each of BOUNDS, and in all."""
    totals = accumulate(durations.counts or (0,) * len(_BOUND_LABELS))
    return list(zip(_BOUND_LABELS, map(float, totals), strict=True))


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
