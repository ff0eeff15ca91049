"""Usage statistics: what readers get of a module, and of each of its versions.

A worker aggregates its calls and sends batches (`reports`); the writer merges them into rows (`usage_rows`). Rows are
kept in a database of their own, apart from the modules: merging them makes no revision and drops nothing from a
reader's cache of records.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.advice import Standing
from dspy_registry.registry_store.outcome_kinds import FAILED, KINDS

SIZES: Final = ("small", "normal", "large", "very_large")
SMALL_INPUT: Final = 100
"""Characters. An input up to this is small; above LARGE_INPUT it is large, above VERY_LARGE_INPUT very large."""
LARGE_INPUT: Final = 1_000
VERY_LARGE_INPUT: Final = 10_000

LARGEST_OF: Final = {
    "small": SMALL_INPUT,
    "normal": LARGE_INPUT,
    "large": VERY_LARGE_INPUT,
    "very_large": VERY_LARGE_INPUT + 1,
}
"""An input of each size class, in characters: the largest, where there is one."""

MINUTES_KEPT: Final = 60
HOURS_KEPT: Final = 48
LARGEST_COUNT: Final = 2**53
"""Counts stop here: a double holds every whole number up to this one exactly."""

# Bucket keys between the shortest and the longest duration, with a margin.
_LOWEST_KEY, _HIGHEST_KEY = -512, 1536
MAX_ENTRIES: Final = 4096

Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
Key = Annotated[int, Meta(ge=_LOWEST_KEY, le=_HIGHEST_KEY)]


def size_class(input_chars: int | None) -> str:
    """The size class of an input of `input_chars` characters; None: unknown, which counts as normal.

    The routing timeout uses the same bounds of large and very large.
    """
    if input_chars is None:
        return "normal"
    if input_chars > LARGE_INPUT:
        return "very_large" if input_chars > VERY_LARGE_INPUT else "large"
    return "small" if input_chars <= SMALL_INPUT else "normal"


class Buckets(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Counted durations: how many were zero, and how many fell into which bucket (`duration_buckets`)."""

    zeros: Count = 0
    counts: Annotated[tuple[tuple[Key, Count], ...], Meta(max_length=_HIGHEST_KEY - _LOWEST_KEY)] = ()


class Durations(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How long successful calls took: how many there were, and quantiles in milliseconds (0.0: no calls).

    A quantile is off by at most 1 % of the exact one.
    """

    calls: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


class Ring(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Calls in each of the last periods, newest last. `last` is the newest period, counted since the epoch."""

    last: int = 0
    counts: tuple[int, ...] = ()

    def until(self, period: int, length: int) -> tuple[int, ...]:
        """`length` counts, of which the last is the count of `period`."""
        oldest = self.last - len(self.counts) + 1
        wanted = range(period - length + 1, period + 1)
        return tuple(self.counts[at - oldest] if oldest <= at <= self.last else 0 for at in wanted)


class ModuleUsage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What real calls have shown of one module, over all its versions. A copy: later calls do not change it.

    `calls` include the failed ones, `errors`; cancelled calls are in neither. `first_used` and `last_used` are
    milliseconds since the epoch (0: never used), to about a second. `overall` and `durations`, by size class (only
    those seen), are of calls that succeeded. Tokens, cost and durations of a module include those of the modules it
    calls. `cost_usd` is in US dollars, over the `priced_calls` that told theirs. `kinds` are counts in the order of
    `outcome_kinds.KINDS`; (): not known.
    """

    name: str
    calls: int = 0
    errors: int = 0
    first_used: int = 0
    last_used: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    priced_calls: int = 0
    overall: Durations = Durations()
    durations: dict[str, Durations] = {}
    minutes: Ring = Ring()
    hours: Ring = Ring()
    kinds: tuple[int, ...] = ()
    failed_minutes: Ring = Ring()
    failed_hours: Ring = Ring()

    @property
    def error_rate(self) -> float | None:
        """The share of calls that failed, 0 to 1; None: there were no calls."""
        return self.errors / self.calls if self.calls else None

    @property
    def cost_usd_per_call(self) -> float | None:
        """Mean cost of the calls whose cost is known, in US dollars; None: there are no such calls."""
        return self.cost_usd / self.priced_calls if self.priced_calls else None

    @property
    def errors_by_kind(self) -> dict[str, int]:
        """How many calls failed in which way; a new dict of those kinds that occurred. {}: none, or not known."""
        return failed_by_kind(self.kinds)

    def calls_by_minute(self, now: float | None = None) -> tuple[int, ...]:
        """Calls in each of the last 60 minutes, newest last. `now` is in seconds since the epoch; None: the present."""
        return self.minutes.until(_seconds(now) // 60, MINUTES_KEPT)

    def calls_by_hour(self, now: float | None = None) -> tuple[int, ...]:
        """Calls in each of the last 48 hours, newest last. `now` is in seconds since the epoch; None: the present."""
        return self.hours.until(_seconds(now) // 3600, HOURS_KEPT)

    def errors_by_minute(self, now: float | None = None) -> tuple[int, ...]:
        """Failed calls in each of the last 60 minutes. Order and `now` are as for `calls_by_minute`."""
        return self.failed_minutes.until(_seconds(now) // 60, MINUTES_KEPT)

    def errors_by_hour(self, now: float | None = None) -> tuple[int, ...]:
        """Failed calls in each of the last 48 hours. Order and `now` are as for `calls_by_hour`."""
        return self.failed_hours.until(_seconds(now) // 3600, HOURS_KEPT)


class VersionUsage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What real calls have shown of one version of a module. A copy: later calls do not change it.

    Fields that ModuleUsage has too mean the same. `standing` is what advice is made of, by size class. `evaluated` are
    the calls of each of the last 60 minutes that count as a success or a failure, `failed` those that failed.
    """

    name: str
    version: int
    calls: int = 0
    errors: int = 0
    first_used: int = 0
    last_used: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    priced_calls: int = 0
    kinds: tuple[int, ...] = ()
    standing: dict[str, Standing] = {}
    evaluated: Ring = Ring()
    failed: Ring = Ring()

    @property
    def error_rate(self) -> float | None:
        """Failed calls among all, 0 to 1; None when there were none."""
        return self.errors / self.calls if self.calls else None

    @property
    def cost_usd_per_call(self) -> float | None:
        """Mean cost of the calls that told it, in US dollars; None when none did."""
        return self.cost_usd / self.priced_calls if self.priced_calls else None

    @property
    def errors_by_kind(self) -> dict[str, int]:
        """How many calls failed in which way; a new dict of those kinds that occurred."""
        return failed_by_kind(self.kinds)

    def evaluated_by_minute(self, now: float | None = None) -> tuple[int, ...]:
        """Calls in each of the last 60 minutes, newest last, that count for a failure rate: each succeeded or failed.

        `now` is in seconds since the epoch; None: the present.
        """
        return self.evaluated.until(_seconds(now) // 60, MINUTES_KEPT)

    def errors_by_minute(self, now: float | None = None) -> tuple[int, ...]:
        """Those calls of `evaluated_by_minute` that failed. Order and `now` are the same."""
        return self.failed.until(_seconds(now) // 60, MINUTES_KEPT)


def failed_by_kind(kinds: Sequence[int]) -> dict[str, int]:
    """Counts by kind, of the kinds that are failures and occurred."""
    return {kind: count for kind, count in zip(KINDS, kinds, strict=False) if count and kind in FAILED}


def _seconds(now: float | None) -> int:
    return int(time.time() if now is None else now)
