"""The guarantee on timeouts in a row, over all providers of the simulator and over whatever Hypothesis thinks of."""

from __future__ import annotations

import math
from itertools import chain, repeat
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_registry.registry_store.advice import default_ceiling
from tests.support.advisers import DECLARED_TIMEOUT, Alone, Host, Process
from tests.support.providers import (
    Call,
    Durations,
    at_most,
    bimodal,
    call_in_turn,
    drifting,
    heavy_tailed,
    replayed,
    rows_of_timeouts,
    stepping,
    usual,
)
from tests.support.selection import each

CEILING = default_ceiling(DECLARED_TIMEOUT)
SLOWEST = CEILING / 1.5
PROVIDERS: dict[str, Durations] = {
    "usual": usual,
    **{f"{factor} x slower": stepping(factor, 500, 1000) for factor in (1.3, 10, 100, 800)},
    **{f"{factor} x quicker": stepping(1 / factor, 500, 1000) for factor in (1.3, 10, 100)},
    "bimodal, 20 x": bimodal(0.05, 20),
    "bimodal, 500 x": bimodal(0.3, 500),
    "heavy tail": heavy_tailed(1.5),
    "very heavy tail": heavy_tailed(0.7),
    "drifting 100 x": drifting(100, 1500),
    "drifting 800 x at once": drifting(800, 50),
}
# Runs of calls that take equally long: most changes that statistics can be led astray by.
RUNS = st.lists(st.tuples(st.floats(0.01, SLOWEST), st.integers(1, 120)), min_size=1, max_size=10)
CEILINGS = st.sampled_from([CEILING, 10 * CEILING, SLOWEST * 1.5])


def assert_guaranteed(calls: list[Call], ceiling: float) -> None:
    """A row begins with the limit that is T then: whatever else was applied to it made it longer."""
    for row in rows_of_timeouts(calls):
        most = math.ceil(math.log2(ceiling / row[0].limit))
        assert len(row) <= most, [call.limit for call in row]


def durations_of(runs: list[tuple[float, int]]) -> list[float]:
    return list(chain.from_iterable(repeat(duration, calls) for duration, calls in runs))


@pytest.mark.parametrize("seeds", [1, pytest.param(3, marks=pytest.mark.full)])
@pytest.mark.parametrize("basis", ["observed", "auto"])
@pytest.mark.parametrize("name", each(3, PROVIDERS))
def test_timeouts_in_a_row_are_few(name: str, basis: str, seeds: int) -> None:
    for seed in range(seeds):
        calls = call_in_turn(at_most(SLOWEST, PROVIDERS[name]), Alone(basis), 2000, seed=seed)
        assert_guaranteed(calls, CEILING)


@given(RUNS, CEILINGS, st.floats(0.1, 10_000), st.sampled_from(["observed", "auto"]))
def test_timeouts_in_a_row_are_few_whatever_the_provider(
    runs: list[tuple[float, int]], ceiling: float, declared: float, basis: str
) -> None:
    durations = durations_of(runs)
    calls = call_in_turn(replayed(durations), Alone(basis, declared, ceiling), len(durations))
    assert_guaranteed(calls, ceiling)


@settings(max_examples=60)
@given(
    RUNS,
    st.integers(1, 100),
    st.integers(1, 200),
    st.lists(st.tuples(RUNS, st.floats(0.1, SLOWEST)), max_size=3),
    st.integers(0, 2**32),
)
def test_timeouts_in_a_row_are_few_for_each_process_beside_others(
    runs: list[tuple[float, int]],
    interval: int,
    enough: int,
    others: list[tuple[list[tuple[float, int]], float]],
    seed: int,
) -> None:
    """The others see another provider, have no patience, and report whenever they like."""
    host = Host(ceiling=CEILING)
    random = Random(seed)
    beside = [(Process(host, random.randint(1, 50)), durations_of(runs), patience) for runs, patience in others]
    process = Process(host, interval, enough)
    calls: list[Call] = []
    for duration in durations_of(runs):
        for other, durations, patience in beside:
            limit = min(patience, other.limit_ms())
            taken = random.choice(durations)
            other.record(min(taken, limit), limit, taken > limit)
        calls += call_in_turn(replayed([duration]), process, 1)
    assert_guaranteed(calls, CEILING)


@pytest.mark.parametrize(
    "interval", [pytest.param(1, marks=pytest.mark.full), 10, pytest.param(100, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("name", each(3, PROVIDERS))
def test_timeouts_in_a_row_are_few_for_eight_processes(name: str, interval: int) -> None:
    host = Host()
    random = Random(1)
    provider = at_most(SLOWEST, PROVIDERS[name])
    made: list[tuple[Process, list[Call]]] = [(Process(host, interval), []) for _ in range(8)]
    for number in range(2000):
        process, calls = random.choice(made)
        calls += call_in_turn(replayed([provider(random, number)]), process, 1)
    for _, calls in made:
        assert_guaranteed(calls, CEILING)
