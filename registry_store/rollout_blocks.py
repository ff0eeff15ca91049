"""What two versions' own statistics say between two looks, as blocks for a rollout. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspy_registry.registry_store.comparison import Block
from dspy_registry.registry_store.duration_buckets import added, by_key, key_of, quantiles
from dspy_registry.registry_store.outcome_kinds import FAILED, KINDS, UNJUDGED
from dspy_registry.registry_store.rollout import SLOW
from dspy_registry.registry_store.statistics import Kept
from dspy_registry.registry_store.usage import VersionUsage
from dspy_registry.registry_store.usage_rows import VersionRow

_ENOUGH: Final = 100
"""Durations in the old version's window. With fewer, its 95th percentile says nothing."""
_SUPPOSED_CALLS: Final = 10.0
_SUPPOSED_RATE: Final = 0.05


def error_block(old: tuple[VersionRow, VersionRow], new: tuple[VersionRow, VersionRow]) -> Block:
    """Calls that succeeded or failed, and failures. Each pair is a version's row at the look before, and now."""
    return Block(*_since(*old), *_since(*new))


def error_rate(old: VersionRow) -> float:
    """What is expected of the next calls of a version: its share of failures, 0 to 1, pulled a little to 5 %."""
    calls, failures = _evaluated(old.usage)
    return (failures + _SUPPOSED_RATE * _SUPPOSED_CALLS) / (calls + _SUPPOSED_CALLS)


def slow_block(
    old: tuple[VersionRow, VersionRow], new: tuple[VersionRow, VersionRow], max_p95_increase: float
) -> Block:
    """Completed calls, and slow ones, over the size classes whose 95th percentile was known before.

    A call of the old version is slow above that percentile, one of the new version above it raised by
    `max_p95_increase`. So a version whose p95 rises by no more than that has at most the old one's share of them.
    """
    counts = [0, 0, 0, 0]
    for size, kept in old[0].kept.items():
        window = _window(kept)
        if sum(window.values()) < _ENOUGH:
            continue
        limit = quantiles(window, (SLOW,))[0]
        for at, (before, now), raised in ((0, old, 1.0), (2, new, 1 + max_p95_increase)):
            came = arrived(before.kept.get(size, Kept()), now.kept.get(size, Kept()))
            counts[at] += sum(came.values())
            counts[at + 1] += sum(count for key, count in came.items() if key > key_of(limit * raised))
    return Block(*counts)


def arrived(before: Kept, now: Kept) -> dict[int, int]:
    """The durations, counted by key, that came into a window after `before`. After a reset, all that is there."""
    (older, newer), (older_now, newer_now) = (tuple(map(by_key, kept.window)) for kept in (before, now))
    if older == older_now and _contains(newer_now, newer):
        return _less(newer_now, newer)
    found = dict(newer_now)
    added(found, (_less(older_now, newer) if _contains(older_now, newer) else older_now).items())
    return found


def _window(kept: Kept) -> dict[int, int]:
    counts: dict[int, int] = {}
    for part in kept.window:
        added(counts, by_key(part).items())
    return counts


def _contains(counts: Mapping[int, int], others: Mapping[int, int]) -> bool:
    return all(counts.get(key, 0) >= count for key, count in others.items())


def _less(counts: Mapping[int, int], others: Mapping[int, int]) -> dict[int, int]:
    return {key: left for key, count in counts.items() if (left := count - others.get(key, 0))}


def _since(before: VersionRow, now: VersionRow) -> tuple[int, int]:
    calls, failures = _evaluated(before.usage)
    calls_now, failures_now = _evaluated(now.usage)
    if calls_now < calls or failures_now < failures:  # the statistics were reset meanwhile
        return calls_now, failures_now
    # A timeout that turns out to be the caller's own is taken back, so calls may rise by less than failures.
    return max(calls_now - calls, failures_now - failures), failures_now - failures


def _evaluated(usage: VersionUsage) -> tuple[int, int]:
    """Calls that succeeded or failed, and those that failed."""
    counts = dict(zip(KINDS, usage.kinds, strict=False))  # () where nobody has called it
    calls = sum(count for kind, count in counts.items() if kind not in UNJUDGED)
    return calls, sum(count for kind, count in counts.items() if kind in FAILED)


def no_row(name: str, version: int) -> VersionRow:
    """The row of a version that nobody has called."""
    return VersionRow(VersionUsage(name, version), {})
