"""Counts that stop where a number ends: by kind of outcome, and by minute or hour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Final

from dspy_registry.registry_store.outcome_kinds import CALLER, KINDS, TIMEOUT
from dspy_registry.registry_store.usage import LARGEST_COUNT, Ring

_TIMEOUT, _CALLER = KINDS.index(TIMEOUT), KINDS.index(CALLER)
_MINUTE: Final = 60_000


def bounded(count: int) -> int:
    """The count, or the largest one that is kept."""
    return min(count, LARGEST_COUNT)


def added_kinds(kept: Sequence[int], reported: Sequence[int], too_short: int) -> tuple[int, ...]:
    """The sums of counts by kind. `too_short` of the reported timeouts count as the caller's. Unknown kinds are cut."""
    counts = [one + other for one, other in zip_longest(kept, reported[: len(KINDS)], fillvalue=0)]
    moved = min(too_short, counts[_TIMEOUT]) if len(counts) > _CALLER else 0
    if moved:
        counts[_TIMEOUT] -= moved
        counts[_CALLER] += moved
    return tuple(map(bounded, counts))


class Minutes:
    """Calls by period, a minute unless told otherwise. Starts from a stored ring."""

    def __init__(self, ring: Ring, minutes: int = 1) -> None:
        first = ring.last - len(ring.counts) + 1
        self._periods = Counter({first + at: calls for at, calls in enumerate(ring.counts)})
        self._minutes = minutes

    def add(self, minutes: Iterable[tuple[int, int]], now: int, sign: int = 1) -> None:
        """Add calls by minute; -1 for `sign`: take them away. `now`, in ms since the epoch, bounds what clocks say."""
        for minute, calls in minutes:
            self._periods[min(minute, now // _MINUTE) // self._minutes] += sign * calls
        self._follow_clock_back(now // _MINUTE // self._minutes)

    def _follow_clock_back(self, newest: int) -> None:
        """Drop periods that are still to come. Counted while the clock was ahead, they would keep out all others."""
        for period in [period for period in self._periods if period > newest]:
            del self._periods[period]

    def take_back(self, calls: int) -> None:
        """Take away calls of which the minutes are not known: the newest ones."""
        for period in sorted(self._periods, reverse=True) if calls else ():
            taken = min(calls, max(0, self._periods[period]))
            self._periods[period] -= taken
            calls -= taken

    def ring(self, kept: int) -> Ring:
        """The newest `kept` periods, from the first of them that had a call."""
        last = max(self._periods, default=0)
        first = min((period for period in self._periods if period > last - kept), default=last)
        return Ring(last, tuple(bounded(max(0, self._periods[period])) for period in range(first, last + 1)))
