"""Which bucket a duration falls into, and what a bucket stands for: DDSketch's logarithmic mapping.

A value's bucket is the logarithm of it. So a quantile read from buckets is off by at most the relative accuracy,
however many of them were merged. Durations lie between the shortest and the longest kept, so the number of buckets is
bounded.

The arithmetic is written out and not taken from DDSketch's library, which has no windows, no thinning and no cheap way
to go on from stored buckets. A test compares it with the library, bucket by bucket.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from operator import mul
from typing import Final

from dspy_registry.registry_store.usage import Buckets

RELATIVE_ACCURACY: Final = 0.01
SHORTEST: Final = 0.001
"""Milliseconds; anything shorter counts as zero."""
LONGEST: Final = 30 * 24 * 60 * 60 * 1000.0
"""Milliseconds; anything longer counts as this."""
ZERO_KEY: Final = -(2**31)
"""The key of durations that count as zero, below every other."""

_GAMMA: Final = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
_PER_LOG: Final = 1 / math.log(_GAMMA)
_MIDDLE: Final = 2 / (1 + _GAMMA)


def key_of(milliseconds: float) -> int:
    """The bucket of a duration, which must not be NaN."""
    if milliseconds < SHORTEST:
        return ZERO_KEY
    return math.ceil(math.log(min(milliseconds, LONGEST)) * _PER_LOG)


def keys_of(durations: Sequence[float]) -> Iterator[int]:
    """`key_of` for many durations, several times as quick."""
    if durations and min(durations) >= SHORTEST and max(durations) <= LONGEST:
        return map(math.ceil, map(mul, map(math.log, durations), repeat(_PER_LOG)))
    return map(key_of, durations)


def value_of(key: int) -> float:
    """The duration that a bucket stands for, in milliseconds: at most 1 % off any that falls into it."""
    return 0.0 if key == ZERO_KEY else math.exp(key / _PER_LOG) * _MIDDLE


def by_key(buckets: Buckets) -> dict[int, int]:
    """Counts by key, in a new dict that may be changed."""
    counts = dict(buckets.counts)
    if buckets.zeros:
        counts[ZERO_KEY] = buckets.zeros
    return counts


def as_buckets(counts: Mapping[int, int]) -> Buckets:
    """The reverse of `by_key`, shortest durations first. Empty buckets are left out."""
    positive = [item for item in sorted(counts.items()) if item[1] and item[0] != ZERO_KEY]
    return Buckets(counts.get(ZERO_KEY, 0), tuple(positive))


def quantiles(counts: Mapping[int, int], fractions: Sequence[float]) -> list[float]:
    """The durations that these fractions (rising, 0 to 1) of all did not exceed, in milliseconds; 0.0 without any."""
    keys = sorted(counts)
    totals = list(accumulate(map(counts.__getitem__, keys)))
    if not totals or not totals[-1]:
        return [0.0] * len(fractions)
    return [_at_rank(keys, totals, fraction * (totals[-1] - 1)) for fraction in fractions]


def _at_rank(keys: Sequence[int], totals: Sequence[int], rank: float) -> float:
    return value_of(keys[bisect_right(totals, rank)])


def every_nth(counts: Mapping[int, int], n: int, start: int = 0) -> dict[int, int]:
    """Every n-th of all durations in order. A remainder of one bucket is carried to the next longer one.

    The results for all `start` from 0 to n - 1 together are the whole.
    """
    kept: dict[int, int] = {}
    total = 0
    for key in sorted(counts):
        before, total = total, total + counts[key]
        share = (total + start) // n - (before + start) // n
        if share:
            kept[key] = share
    return kept


def added(counts: dict[int, int], more: Iterable[tuple[int, int]]) -> None:
    """Add counts by key in place."""
    get = counts.get
    for key, count in more:
        counts[key] = get(key, 0) + count
