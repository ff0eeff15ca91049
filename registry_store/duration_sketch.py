"""A mergeable quantile sketch of durations: DDSketch, kept as plain buckets.

A value's bucket is its logarithm, rounded. So a quantile is off by at most the relative accuracy, however many sketches
were merged. Durations are cut to the range from SHORTEST to LONGEST, so the number of buckets is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore

from dspy_registry.registry_store.usage import LARGEST_COUNT, Buckets, Durations

RELATIVE_ACCURACY: Final = 0.01
SHORTEST: Final = 0.001
"""Milliseconds; anything shorter counts as zero."""
LONGEST: Final = 30 * 24 * 60 * 60 * 1000.0
"""Milliseconds; anything longer counts as this long."""

_MAPPING: Final = LogarithmicMapping(RELATIVE_ACCURACY)


class DurationSketch:
    """Durations in milliseconds. `buckets` is what another sketch has dumped; None: no durations yet."""

    __slots__ = ("_positive", "_sketch")

    def __init__(self, buckets: Buckets | None = None) -> None:
        self._positive = DenseStore()
        zeros = 0
        if buckets is not None:
            zeros = buckets.zeros
            for key, count in (
                *buckets.counts[-1:],
                *buckets.counts[:-1],
            ):  # the last first: the store then grows once
                self._positive.add(key, count)
        self._sketch = BaseDDSketch(_MAPPING, self._positive, DenseStore(), float(zeros))

    def add(self, milliseconds: float) -> None:
        """Count one duration. It must not be NaN."""
        self._sketch.add(0.0 if milliseconds < SHORTEST else min(milliseconds, LONGEST))

    def merge(self, other: DurationSketch) -> None:
        """Add the counts of `other`."""
        self._sketch.merge(other._sketch)

    def quantile(self, fraction: float) -> float:
        """The duration that this fraction (0 to 1) of calls did not exceed, in milliseconds; 0.0 without calls."""
        return float(self._sketch.get_quantile_value(fraction) or 0.0)

    def summary(self) -> Durations:
        """The count and the quantiles that readers get."""
        p50, p90, p99 = (self.quantile(fraction) for fraction in (0.5, 0.9, 0.99))
        return Durations(int(self._sketch.count), p50, p90, p99)

    def dump(self) -> Buckets:
        """The buckets to store. `__init__` takes them."""
        offset = self._positive.offset
        counts = tuple(
            (offset + at, min(int(count), LARGEST_COUNT)) for at, count in enumerate(self._positive.bins) if count
        )
        return Buckets(int(self._sketch.count - self._positive.count), counts)


def together(parts: Iterable[Buckets]) -> Buckets:
    """The buckets of all parts together, as if their sketches were merged. Quicker than that for many small parts."""
    zeros = 0
    counts: dict[int, int] = {}
    for part in parts:
        zeros += part.zeros
        for key, count in part.counts:
            counts[key] = counts.get(key, 0) + count
    bounded = tuple((key, min(counts[key], LARGEST_COUNT)) for key in sorted(counts))
    return Buckets(min(zeros, LARGEST_COUNT), bounded)
