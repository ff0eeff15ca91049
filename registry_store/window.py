"""The window: a sketch of about the last 2,000 durations, which forgets by halving.

It is full at 2,048. Then every bucket is halved, from the shortest up, and what is left over is carried to the next:
halving each bucket as an integer would lose the tail, whose buckets hold one duration each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspy_registry.registry_store.duration_buckets import added, as_buckets, by_key, every_nth, key_of, quantiles
from dspy_registry.registry_store.usage import Buckets

FULL: Final = 2048
_HALF: Final = FULL // 2


class Window:
    """Durations in milliseconds. `dump` gives what `__init__` takes."""

    __slots__ = ("_counts", "total")

    def __init__(self, buckets: Buckets | None = None) -> None:
        self._counts = {} if buckets is None else by_key(buckets)
        self.total = sum(self._counts.values())
        """How many durations it holds now; below FULL."""

    def add(self, milliseconds: float) -> None:
        """Count one duration. It must not be NaN."""
        self._add({key_of(milliseconds): 1}, 1)

    def merge(self, counts: Mapping[int, int]) -> None:
        """Count many, given by key, as if they had come one by one in an even mixture."""
        total = sum(counts.values())
        parts = -(-total // _HALF)
        for start in range(parts):
            part = every_nth(counts, parts, start)
            self._add(part, sum(part.values()))

    def quantiles(self, *fractions: float) -> list[float]:
        """The durations that these fractions (rising, 0 to 1) did not exceed, in milliseconds; 0.0 while empty."""
        return quantiles(self._counts, fractions)

    def dump(self) -> Buckets:
        """What `__init__` takes."""
        return as_buckets(self._counts)

    def _add(self, counts: Mapping[int, int], total: int) -> None:
        added(self._counts, counts.items())
        self.total += total
        if self.total >= FULL:
            self._counts = every_nth(self._counts, 2)
            self.total //= 2
