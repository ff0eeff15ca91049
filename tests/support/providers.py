"""A simulator of providers and of the callers that enforce the advised limit: no clock, no threads, fixed seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from random import Random
from typing import Protocol

MEDIAN = 100.0
"""Milliseconds, of every provider at its usual speed."""
HANGS = math.inf

Durations = Callable[[Random, int], float]
"""How long the call with this number (from 0) takes, in milliseconds; HANGS: it never ends."""


# Providers


def usual(random: Random, _: int) -> float:
    """Log-normal: half of all calls take 87 to 114 ms, one in a hundred more than 159."""
    return random.lognormvariate(math.log(MEDIAN), 0.2)


def stepping(factor: float, at: int, back: int | None = None) -> Durations:
    """`factor` times as slow from call `at` on, until call `back`; below 1: quicker."""

    def duration(random: Random, call: int) -> float:
        stepped = call >= at and (back is None or call < back)
        return usual(random, call) * (factor if stepped else 1)

    return duration


def bimodal(share: float, factor: float) -> Durations:
    """This share of calls takes `factor` times as long."""

    def duration(random: Random, call: int) -> float:
        return usual(random, call) * (factor if random.random() < share else 1)

    return duration


def heavy_tailed(shape: float) -> Durations:
    """Pareto: the smaller the shape, the longer the tail. Below 2 the variance is infinite."""

    def duration(random: Random, _: int) -> float:
        return MEDIAN / 2 ** (1 / shape) * random.paretovariate(shape)

    return duration


def drifting(factor: float, calls: int) -> Durations:
    """Slows evenly, by `factor` within this number of calls, and stays slow."""

    def duration(random: Random, call: int) -> float:
        return usual(random, call) * factor ** min(1.0, call / calls)

    return duration


def hanging(share: float) -> Durations:
    """This share of calls never ends."""

    def duration(random: Random, call: int) -> float:
        ended = usual(random, call)
        return HANGS if random.random() < share else ended

    return duration


def out(begin: int, end: int) -> Durations:
    """No call from `begin` until before `end` ever ends."""

    def duration(random: Random, call: int) -> float:
        ended = usual(random, call)
        return HANGS if begin <= call < end else ended

    return duration


def at_most(longest: float, durations: Durations) -> Durations:
    """The same provider, which never takes longer than this, in milliseconds."""
    return lambda random, call: min(longest, durations(random, call))


def replayed(durations: Sequence[float]) -> Durations:
    """Exactly these."""
    return lambda _, call: durations[call]


# Callers


class Advice(Protocol):
    """What a caller asks before each call, and tells afterwards."""

    def limit_ms(self) -> float:
        """The limit for the next call, in milliseconds."""

    def record(self, duration_ms: float, limit_ms: float, timed_out: bool) -> None:
        """Count a call; one that timed out took its limit."""


@dataclass(frozen=True)
class Call:
    """One call, as its caller saw it. `limit` is what was enforced, in milliseconds."""

    limit: float
    duration: float
    timed_out: bool


def call_in_turn(
    durations: Durations, advice: Advice, calls: int, *, seed: int = 1, patience: float = math.inf
) -> list[Call]:
    """One call after another, each under the limit advised, or the caller's patience where that is shorter."""
    random = Random(seed)
    made: list[Call] = []
    for number in range(calls):
        limit = min(patience, advice.limit_ms())
        duration = durations(random, number)
        timed_out = duration > limit
        made.append(Call(limit, min(duration, limit), timed_out))
        advice.record(min(duration, limit), limit, timed_out)
    return made


def rows_of_timeouts(calls: Sequence[Call]) -> list[list[Call]]:
    """The timeouts, each row of consecutive ones together."""
    return [list(row) for timed_out, row in groupby(calls, lambda call: call.timed_out) if timed_out]


def timeouts(calls: Sequence[Call]) -> int:
    """How many timed out."""
    return sum(call.timed_out for call in calls)
