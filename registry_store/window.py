"""The window: a sketch of the last 1,024 to 2,048 durations, in two blocks.

New durations go into the newer block. When it is full, it replaces the older one, whose durations are forgotten.
A single sketch that is halved when it is full would remember a slow past too long: its 99th percentile would stay high
for 6,500 calls. With two blocks it takes at most 2,048.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspy_registry.registry_store.duration_buckets import added, as_buckets, by_key, every_nth, key_of, quantiles
from dspy_registry.registry_store.usage import Buckets

BLOCK: Final = 1024


class Window:
    """Durations in milliseconds. `dump` gives what `__init__` takes: the older block and the newer one."""

    __slots__ = ("_in_newer", "_newer", "_older")

    def __init__(self, older: Buckets | None = None, newer: Buckets | None = None) -> None:
        self._older = by_key(older or Buckets())
        self._newer = by_key(newer or Buckets())
        self._in_newer = sum(self._newer.values())

    @property
    def total(self) -> int:
        """How many durations it holds."""
        return sum(self._older.values()) + self._in_newer

    def add(self, milliseconds: float) -> None:
        """Count one duration. It must not be NaN."""
        self._add({key_of(milliseconds): 1}, 1)

    def merge(self, counts: Mapping[int, int]) -> None:
        """Count many, given by key. If they are more than a block holds, an even selection with the longest is kept."""
        total = sum(counts.values())
        thinning = -(-total // BLOCK)
        if thinning > 1:
            counts = every_nth(counts, thinning, -total % thinning)
            total = sum(counts.values())
        if total:
            self._add(counts, total)

    def quantiles(self, *fractions: float) -> list[float]:
        """The durations that these fractions (rising, 0 to 1) did not exceed, in milliseconds; 0.0 while empty."""
        counts = dict(self._older)
        added(counts, self._newer.items())
        return quantiles(counts, fractions)

    def dump(self) -> tuple[Buckets, Buckets]:
        """The blocks to store. `__init__` takes them."""
        return as_buckets(self._older), as_buckets(self._newer)

    def _add(self, counts: Mapping[int, int], total: int) -> None:
        if self._in_newer >= BLOCK:
            self._older, self._newer, self._in_newer = self._newer, {}, 0
        added(self._newer, counts.items())
        self._in_newer += total
