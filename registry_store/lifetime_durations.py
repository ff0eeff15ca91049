"""Durations over the whole life of a version, in a few fixed buckets: what a histogram of Prometheus is made of.

The window of `statistics` forgets old calls, so its counts fall, which a histogram's must not. These only rise.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cache
from typing import Final

import msgspec

from dspy_registry.registry_store.duration_buckets import by_key, key_of, value_of
from dspy_registry.registry_store.usage import LARGEST_COUNT, Buckets, Count

BOUNDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
"""Seconds. Counts are stored by their place here: these stay as they are within a format."""


class LifetimeDurations(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Completed calls: `counts` of those up to each of BOUNDS and above the one before, then of all longer ones.

    (): none. `seconds` is the sum of their durations. Both are made of values that are 1 % exact.
    """

    counts: tuple[Count, ...] = ()
    seconds: float = 0.0

    def with_calls(self, completed: Buckets) -> LifetimeDurations:
        """These and more calls."""
        counts = [*self.counts, *[0] * (len(BOUNDS) + 1 - len(self.counts))]
        seconds = self.seconds
        for key, calls in by_key(completed).items():
            place, each = _place_and_seconds(key)
            counts[place] += calls
            seconds += each * calls
        return LifetimeDurations(tuple(min(count, LARGEST_COUNT) for count in counts), seconds)


def _first_key_above(bound: float) -> int:
    """The lowest bucket whose value is longer than this many seconds."""
    key = key_of(bound * 1000)
    return key if value_of(key) / 1000 > bound else key + 1


_FIRST_ABOVE: Final = tuple(map(_first_key_above, BOUNDS))


@cache  # a few thousand keys: a scrape asks for some hundred thousand
def _place_and_seconds(key: int) -> tuple[int, float]:
    return bisect_right(_FIRST_ABOVE, key), value_of(key) / 1000
