"""The time limit and the estimate for the next call: pure arithmetic on a few stored numbers."""

from __future__ import annotations

from typing import Final

import msgspec

ENOUGH_CALLS: Final = 20
"""Completed calls. From this many on, observed durations replace declared ones."""
QUANTILE_MARGIN: Final = 1.2
LONGEST_MARGIN: Final = 1.5
DECLARED_MARGIN: Final = 1.2
_CEILING_FACTOR: Final = 10
_LEAST_CEILING: Final = 120_000.0
_TIMEOUT_FACTORS: Final = {"large": 1.5, "very_large": 3.0}


class Standing(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The numbers for one module version and size class. Durations are in milliseconds; 0.0: none yet.

    `completed` counts calls since the version began. `p50`, `p90` and `p99` are of the window, `longest` is of the last
    16 to 32 completed calls. `backoff` is the least limit after a timeout, until a call completes.
    """

    completed: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    backoff: float = 0.0

    def with_own(self, longest: float, backoff: float) -> Standing:
        """These numbers together with those that this process saw itself, in milliseconds, before they are merged."""
        if longest <= self.longest and backoff <= self.backoff:
            return self
        return msgspec.structs.replace(self, longest=max(self.longest, longest), backoff=max(self.backoff, backoff))


def declared_timeout(estimated_duration: float, size: str) -> float:
    """The limit that a record declares for an input of this size class, in milliseconds."""
    return estimated_duration * _TIMEOUT_FACTORS.get(size, 1.0) * DECLARED_MARGIN


def default_ceiling(declared_timeout: float) -> float:
    """The largest limit in milliseconds, if no policy sets one."""
    return max(_CEILING_FACTOR * declared_timeout, _LEAST_CEILING)


def estimate(standing: Standing, declared_duration: float, enough: int = ENOUGH_CALLS) -> float:
    """How long the next call will take, in milliseconds: the window's median, once `enough` calls have completed."""
    return standing.p50 if standing.completed >= enough else declared_duration


def steady_timeout(standing: Standing, declared_timeout: float, enough: int = ENOUGH_CALLS) -> float:
    """T: the limit in milliseconds that lets a call complete even if it is as slow as the slowest of late."""
    usual = QUANTILE_MARGIN * standing.p99 if standing.completed >= enough else declared_timeout
    return max(usual, LONGEST_MARGIN * standing.longest)


def observed_timeout(standing: Standing, declared_timeout: float, ceiling: float, enough: int = ENOUGH_CALLS) -> float:
    """The limit for the next call in milliseconds, from what was observed."""
    return min(ceiling, max(steady_timeout(standing, declared_timeout, enough), standing.backoff))


def auto_timeout(
    standing: Standing,
    declared_timeout: float,
    declared_duration: float,
    ceiling: float,
    enough: int = ENOUGH_CALLS,
) -> float:
    """As `observed_timeout`, but at least the declared timeout and 1.2 times the estimate; never above the ceiling."""
    observed = observed_timeout(standing, declared_timeout, ceiling, enough)
    least = max(declared_timeout, QUANTILE_MARGIN * estimate(standing, declared_duration, enough))
    return min(ceiling, max(observed, least))
