"""Simulated rollouts: how often a version that is worse is returned, and one that is not.

python -m tests.support.rollout_figures    prints the tables of docs/rollouts.md; takes some minutes
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from statistics import NormalDist

from dspy_registry.registry_store.comparison import Block
from dspy_registry.registry_store.rollout import ACTIVE, DONE, SLOW, Plan, Rollout, decided, observed

RUNS = 2000
BASES = (0.01, 0.02, 0.05, 0.1, 0.2)
FACTORS = (1.5, 2.0, 3.0)
BATCH = 5  # calls of the new version between two looks
KNOWN = 500  # calls of the old version before the rollout
SPREAD = 0.5  # of the logarithms of durations


def binomial(chance: random.Random, calls: int, rate: float) -> int:
    """Hits among so many calls: it draws the distance to each next hit."""
    hits = at = 0
    if not rate:
        return 0
    per_call = math.log1p(-rate)
    while True:
        at += int(math.log(1 - chance.random()) / per_call) + 1
        if at > calls:
            return hits
        hits += 1


class Simulated:
    """A rollout whose versions fail, and are slow, at these rates: first of the old one, then of the new one."""

    def __init__(self, plan: Plan, errors: tuple[float, float], slow: tuple[float, float], seed: int) -> None:
        self.rollout = Rollout("acme.Qa", "live", 1, 2, plan, 0, 0)
        self._errors, self._slow = errors, slow
        self._chance = random.Random(seed)
        self._calls, self._hits = KNOWN, binomial(self._chance, KNOWN, errors[0])

    def look(self, new_calls: int, now: int = 0) -> None:
        """So many more calls of the new version, and as many of the old one as the step asks for."""
        share = self.rollout.weights[self.rollout.new]
        old_calls = round(new_calls * (100 - share) / share)
        errors, slow = (
            Block(old_calls, self._drawn(old_calls, old), new_calls, self._drawn(new_calls, new))
            for old, new in (self._errors, self._slow)
        )
        rate = (self._hits + 0.5) / (self._calls + 10)
        self._calls, self._hits = self._calls + old_calls, self._hits + errors.old_hits
        self.rollout = decided(observed(self.rollout, errors, rate, slow), now)

    def _drawn(self, calls: int, rate: float) -> int:
        return binomial(self._chance, calls, rate)


def calls_until_return(base: float, factor: float, most: int, seed: int, allowed: float = 0.02) -> int:
    """Calls of a version that fails `factor` times as often, at 10 % of all, until it is returned; 0: it is not."""
    plan = Plan((10.0, 100.0), 1e6, allowed, 0.2)
    simulated = Simulated(plan, (base, base * factor), (0.0, 0.0), seed)
    return _until_return(simulated, most)


def slow_calls_until_return(factor: float, most: int, seed: int) -> int:
    """The same for a version whose calls all take `factor` times as long, with 20 % allowed."""
    usual = NormalDist()
    slow = 1 - usual.cdf(usual.inv_cdf(SLOW) - math.log(factor / 1.2) / SPREAD)
    return _until_return(Simulated(Plan((10.0, 100.0), 1e6), (0.0, 0.0), (1 - SLOW, slow), seed), most)


def _until_return(simulated: Simulated, most: int) -> int:
    for calls in range(BATCH, most, BATCH):
        simulated.look(BATCH)
        if not simulated.rollout.is_active:
            return calls
    return 0


def is_returned_though_equal(base: float, seed: int, *, calls_a_step: int = 20_000) -> bool:
    """Whether an equal version is returned, over all steps, with no increase of errors allowed.

    Its durations are 20 % longer than the old one's, which is just what is allowed.
    """
    plan = Plan((1.0, 10.0, 50.0, 100.0), 1.0, 0.0, 0.2)
    simulated, now = Simulated(plan, (base, base), (1 - SLOW, 1 - SLOW), seed), 0
    while simulated.rollout.state in ACTIVE:
        share = simulated.rollout.weights[simulated.rollout.new] / 100
        for _ in range(40):
            simulated.look(round(calls_a_step * share / 40), now)
            if simulated.rollout.state not in ACTIVE:
                break
        now += 1000
        if simulated.rollout.state in ACTIVE:
            simulated.look(1, now)
    return simulated.rollout.state != DONE


def return_row(base: float, runs: int = RUNS) -> str:
    """Percent of runs returned: twice the errors by the 200th call (0, 2 points allowed), the 1,000th; equal ones."""
    early = [
        sum(calls_until_return(base, 2.0, 200, seed, allowed) > 0 for seed in range(runs)) for allowed in (0.0, 0.02)
    ]
    later = sum(calls_until_return(base, 2.0, 1000, seed, 0.0) > 0 for seed in range(runs))
    equal = sum(is_returned_though_equal(base, seed) for seed in range(runs))
    return f"| {100 * base:g} | {' | '.join(f'{100 * each / runs:.1f}' for each in (*early, later, equal))} |"


def slow_row(factor: float, runs: int = RUNS) -> str:
    """Percent of runs returned before the 200th, 500th and 1,000th call of a version that takes longer."""
    found = [slow_calls_until_return(factor, 1000, seed) for seed in range(runs)]
    shares = (100 * sum(0 < each < most for each in found) / runs for most in (200, 500, 1000))
    return f"| {factor:g} | {' | '.join(f'{share:.1f}' for share in shares)} |"


def tables() -> Iterator[str]:
    """Every row."""
    yield from map(return_row, BASES)
    yield from map(slow_row, FACTORS)


if __name__ == "__main__":
    for row in tables():
        print(row, flush=True)
