"""The statistics of one module version and size of input: a pure state machine, the same in every process.

It takes calls one by one, or evidence that other processes gathered, in the order of arrival. `docs/statistics.md`
gives the reason for each rule.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from dspy_registry.registry_store.advice import Standing
from dspy_registry.registry_store.duration_buckets import by_key, key_of, value_of
from dspy_registry.registry_store.evidence import COUNTED_IN_ROW, Evidence
from dspy_registry.registry_store.recent_calls import BLOCK, Recent
from dspy_registry.registry_store.usage import LARGEST_COUNT, Buckets
from dspy_registry.registry_store.window import Window

CALLS_TO_JUDGE_LIMITS: Final = 40
"""Completed calls. From this many on, a timeout whose limit was below the window's p90 counts as the caller's fault.

It is more than `advice.ENOUGH_CALLS`. So an advised limit is never below the p90, and a caller who uses it is trusted.
"""
HANG_FACTOR: Final = 20
"""A timeout counts as no longer than this times the p90, however large its limit was."""


class Kept(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The whole state, as it is stored."""

    window: tuple[Buckets, Buckets] = (Buckets(), Buckets())
    completed: int = 0
    recent: Recent = msgspec.field(default_factory=Recent)


class Statistics:
    """Starts from a stored state; `kept` is the next one. Durations, limits and ceilings are in milliseconds.

    A ceiling is the largest limit that the module's policy allows.
    """

    __slots__ = ("_completed", "_recent", "_window")

    def __init__(self, kept: Kept | None = None) -> None:
        kept = kept or Kept()
        self._window = Window(*kept.window)
        self._completed = kept.completed
        self._recent = msgspec.structs.replace(kept.recent)

    def completed(self, milliseconds: float) -> None:
        """Count a call that completed."""
        self._window.add(milliseconds)
        self._completed = min(self._completed + 1, LARGEST_COUNT)
        self._recent.completed(milliseconds)

    def timed_out(self, limit: float, ceiling: float) -> bool:
        """Count a call that its caller ended after `limit`. False: that says nothing about the provider."""
        if limit < self._least_limit():
            return False
        if self._recent.in_row < COUNTED_IN_ROW:
            self._window.add(self._stands_for(limit, ceiling))
        self._recent.timed_out(limit, ceiling)
        return True

    def merge(self, evidence: Evidence, ceiling: float) -> int:
        """Count what another process gathered. Returns how many of its timeouts say nothing about the provider."""
        room = max(0, COUNTED_IN_ROW - self._recent.in_row)
        self._merge_completed(evidence)
        least = self._least_limit()
        entering = by_key(evidence.later)
        for limit in [limit for limit in evidence.first if limit >= least][:room]:
            key = key_of(limit)
            entering[key] = entering.get(key, 0) + 1
        self._window.merge(self._as_durations(entering, least, ceiling))
        calls, largest = evidence.last_row
        if calls and largest >= least:
            self._recent.timed_out(largest, ceiling, calls)
        return _too_short(evidence, least)

    def standing(self) -> Standing:
        """The numbers that limits and estimates are made from."""
        p50, p90, p99 = self._window.quantiles(0.5, 0.9, 0.99)
        return Standing(self._completed, p50, p90, p99, self._recent.longest, self._recent.backoff)

    def kept(self) -> Kept:
        """The state to store. `__init__` takes it."""
        return Kept(self._window.dump(), self._completed, msgspec.structs.replace(self._recent))

    def _merge_completed(self, evidence: Evidence) -> None:
        completed = by_key(evidence.completed)
        calls = sum(completed.values())
        if not calls:
            return
        self._window.merge(completed)
        self._completed = min(self._completed + calls, LARGEST_COUNT)
        last, before = evidence.recent
        if calls > BLOCK:
            self._recent.completed(before, min(calls - BLOCK, BLOCK))
        self._recent.completed(last, min(calls, BLOCK))

    def _least_limit(self) -> float:
        """A timeout with a limit below this is the caller's fault; 0.0 while there are too few calls."""
        return self._window.quantiles(0.9)[0] if self._completed >= CALLS_TO_JUDGE_LIMITS else 0.0

    def _stands_for(self, limit: float, ceiling: float) -> float:
        """The duration that a timeout counts as."""
        hang = HANG_FACTOR * self._window.quantiles(0.9)[0] or ceiling
        return min(2 * limit, hang, ceiling)

    def _as_durations(self, limits: dict[int, int], least: float, ceiling: float) -> dict[int, int]:
        hang = self._stands_for(ceiling, ceiling)
        durations: dict[int, int] = {}
        for key, count in limits.items():
            limit = value_of(key)
            if limit >= least:
                duration = key_of(min(2 * limit, hang))
                durations[duration] = durations.get(duration, 0) + count
        return durations


def _too_short(evidence: Evidence, least: float) -> int:
    return sum(limit < least for limit in evidence.first) + sum(
        count for limits in (evidence.later, evidence.beyond) for limit, count in _limits(limits) if limit < least
    )


def _limits(buckets: Buckets) -> Iterable[tuple[float, int]]:
    return ((value_of(key), count) for key, count in by_key(buckets).items())
