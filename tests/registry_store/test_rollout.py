"""The pure part of rollouts: the test's figures, the steps, and what statistics give as blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspy_registry.registry_store.comparison import RATIOS, Block, Comparison
from dspy_registry.registry_store.rollout import (
    ABORTED,
    DONE,
    MIN_CALLS,
    OVERTAKEN,
    PAUSED,
    RETURNED,
    RUNNING,
    Plan,
    Rollout,
    decided,
    ended,
    observed,
    plan_problems,
)
from dspy_registry.registry_store.rollout_blocks import arrived, error_block, error_rate, no_row, slow_block
from dspy_registry.registry_store.statistics import Kept, Statistics
from dspy_registry.registry_store.usage_rows import VersionRow
from tests.support import ROOT
from tests.support.rollout_figures import (
    BASES,
    FACTORS,
    calls_until_return,
    is_returned_though_equal,
    return_row,
    slow_calls_until_return,
    slow_row,
)
from tests.support.selection import each

NOTHING = Block()
BEGUN = Rollout("acme.Qa", "live", 1, 2, Plan(), 0, 0)


def share(found: list[bool]) -> float:
    return sum(found) / len(found)


# Figures


@pytest.mark.parametrize(("base", "least"), [(0.1, 0.85), (0.2, 0.99)])
def test_a_version_with_twice_the_errors_is_returned_before_its_200th_call(base: float, least: float) -> None:
    found = [calls_until_return(base, 2.0, 200, seed) > 0 for seed in range(300)]
    assert share(found) >= least - 0.03  # 300 runs; docs/rollouts.md has the figures of 2,000


@pytest.mark.parametrize("seeds", each(2, [20, 50]))
def test_an_equal_version_is_rarely_returned(seeds: int) -> None:
    found = [is_returned_though_equal(base, seed, calls_a_step=2_000) for base in (0.02, 0.2) for seed in range(seeds)]
    assert share(found) <= 0.05


def test_a_version_that_takes_twice_as_long_is_returned() -> None:
    assert share([slow_calls_until_return(2.0, 500, seed) > 0 for seed in range(50)]) >= 0.95


def figures_of_the_page(first: float) -> list[float]:
    """The row of docs/rollouts.md that begins so."""
    page = (ROOT / "docs" / "rollouts.md").read_text(encoding="utf-8")
    return numbers(next(line for line in page.splitlines() if line.startswith(f"| {first:g} |")))


def numbers(row: str) -> list[float]:
    return [float(cell) for cell in row.strip("| ").split("|")]


ROWS = [(100 * base, partial(return_row, base)) for base in BASES] + [
    (factor, partial(slow_row, factor)) for factor in FACTORS if factor not in (1.0, 2.0)
]


@pytest.mark.parametrize(("first", "row"), ROWS)
def test_each_row_of_the_page_is_what_some_runs_show(first: float, row: Callable[[int], str]) -> None:
    """Within four standard deviations. The case for `make stress` makes the same runs as the page."""
    runs = 25
    for told, found in zip(figures_of_the_page(first)[1:], numbers(row(runs))[1:], strict=True):
        share = min(max(told / 100, 0.01), 0.99)
        assert abs(found - told) <= 400 * math.sqrt(share * (1 - share) / runs)


@pytest.mark.stress
@pytest.mark.parametrize(("first", "row"), ROWS)
def test_each_row_of_the_page_is_computed(first: float, row: Callable[[], str]) -> None:
    assert numbers(row()) == figures_of_the_page(first)


def test_the_page_keeps_what_is_promised() -> None:
    rows = {base: figures_of_the_page(100 * base)[1:] for base in BASES}
    assert max(equal for *_, equal in rows.values()) <= 5.0
    for base, least in ((0.1, 85.0), (0.2, 99.0)):
        assert min(rows[base][:2]) >= least


# The test


rates = st.floats(0.001, 0.95)


@settings(max_examples=100)
@given(rates, st.floats(0.0, 1.0), st.integers(0, 12), st.integers(0, 12))
def test_no_block_raises_the_mean_e_value_of_equal_versions(expected: float, true: float, old: int, new: int) -> None:
    mean = 0.0
    for old_hits in range(old + 1):
        for new_hits in range(new + 1):
            chance = _binomial(old, old_hits, true) * _binomial(new, new_hits, true)
            comparison = Comparison().and_block(Block(old, old_hits, new, new_hits), expected)
            mean += chance * math.exp(comparison.strength)
    assert mean <= 1 + 1e-9


def _binomial(calls: int, hits: int, rate: float) -> float:
    return math.comb(calls, hits) * rate**hits * (1 - rate) ** (calls - hits)


def test_weights_of_the_alternatives_add_up() -> None:
    assert sum(RATIOS.values()) == pytest.approx(1.0)
    assert Comparison().strength == pytest.approx(0.0)


def test_one_version_alone_says_nothing() -> None:
    for block in (Block(1000, 10, 0, 0), Block(0, 0, 1000, 900), NOTHING):
        assert Comparison().and_block(block, 0.01).strength == pytest.approx(0.0)


# The steps


def test_a_good_version_goes_through_all_steps() -> None:
    rollout, shares = BEGUN, []
    for minute in range(40):
        shares.append(rollout.weights.get(2, 0.0))
        rollout = decided(observed(rollout, Block(900, 90, 100, 10), 0.1, NOTHING), minute * 60_000)
    assert list(dict.fromkeys(shares)) == [1.0, 10.0, 50.0, 100.0]
    assert (rollout.state, rollout.weights) == (DONE, {2: 100.0})


def test_a_worse_version_is_returned_also_while_paused() -> None:
    paused = msgspec.structs.replace(BEGUN, state=PAUSED)
    for begun in (BEGUN, paused):
        worse = decided(observed(begun, Block(900, 90, 100, 60), 0.1, NOTHING), 5)
        assert (worse.state, worse.weights, worse.ended_at) == (RETURNED, {1: 100.0}, 5)
        assert "60 % (60 of 100) of version 2's calls failed" in worse.reason
        slow = decided(observed(begun, NOTHING, 0.1, Block(900, 45, 100, 60)), 5)
        assert "1.2 times the 95th percentile of version 1" in slow.reason


def test_a_significant_increase_that_is_allowed_returns_nothing() -> None:
    lenient = msgspec.structs.replace(BEGUN, plan=Plan(max_error_increase=0.1))
    assert decided(observed(lenient, Block(9000, 90, 10_000, 500), 0.01, NOTHING), 0).state == RUNNING


def test_a_step_waits_for_calls_and_a_pause_for_its_end() -> None:
    late = 10**9
    assert decided(BEGUN, late) == BEGUN
    seen = observed(BEGUN, Block(100, 0, MIN_CALLS, 0), 0.0, NOTHING)
    assert decided(seen, 1) == seen
    assert decided(seen, late).step == 1
    paused = msgspec.structs.replace(seen, state=PAUSED)
    assert decided(paused, late) == paused


def test_what_has_ended_stays() -> None:
    for state in (DONE, RETURNED, ABORTED, OVERTAKEN):
        over = ended(observed(BEGUN, Block(900, 90, 100, 60), 0.1, NOTHING), state, "", 7)
        assert decided(over, 10**9) == over
        assert over.weights == ({2: 100.0} if state == DONE else {1: 100.0})


@pytest.mark.parametrize(
    "plan",
    [
        Plan(()),
        Plan((10.0, 10.0, 100.0)),
        Plan((10.0, 50.0)),
        Plan((0.0, 100.0)),
        Plan((float("nan"), 100.0)),
        Plan(every=-1.0),
        Plan(("10", 100.0)),  # type: ignore[arg-type]
        Plan(10.0),  # type: ignore[arg-type]
        Plan(every="10m"),  # type: ignore[arg-type]
        Plan(max_error_increase=None),  # type: ignore[arg-type]
        Plan(max_error_increase=1.5),
        Plan(max_p95_increase=float("nan")),
        Plan(tuple(float(step) for step in range(1, 18))),
    ],
)
def test_what_no_plan_may_be(plan: Plan) -> None:
    assert list(plan_problems(plan))


def test_the_usual_plan_is_sound() -> None:
    assert not list(plan_problems(Plan()))


# Blocks


def row(version: int, *kinds: int, kept: Kept | None = None) -> VersionRow:
    empty = no_row("acme.Qa", version)
    usage = msgspec.structs.replace(empty.usage, kinds=kinds)
    return VersionRow(usage, {} if kept is None else {"normal": kept})


def test_a_block_of_failures_is_what_came_between_two_looks() -> None:
    old = row(1, 90, 1, 2, 3, 4), row(1, 180, 2, 4, 6, 8, 5, 70, 70)
    new = no_row("acme.Qa", 2), row(2, 9, 1)
    assert error_block(old, new) == Block(105, 15, 10, 1)
    assert error_block(old[::-1], new) == Block(100, 10, 10, 1)  # reset meanwhile: all that is there
    assert error_rate(row(1)) == pytest.approx(0.05)
    assert error_rate(row(1, 900, 100)) == pytest.approx(0.1, abs=0.001)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 700), min_size=2, max_size=8))
def test_what_arrived_is_found_however_the_window_turns(batches: list[int]) -> None:
    statistics = Statistics()
    for number, calls in enumerate(batches):
        before = statistics.kept()
        for call in range(calls):
            statistics.completed(100.0 + 10 * number + call % 7)
        assert sum(arrived(before, statistics.kept()).values()) == calls


def test_slow_calls_are_counted_against_the_old_versions_percentile() -> None:
    old, new = Statistics(), Statistics()
    for call in range(200):
        old.completed(100.0 + call)  # its 95th percentile is 290
    before = row(1, kept=old.kept()), row(2, kept=new.kept())
    for _ in range(50):
        old.completed(310.0)
        new.completed(310.0)
        new.completed(400.0)
    now = row(1, kept=old.kept()), row(2, kept=new.kept())
    found = slow_block((before[0], now[0]), (before[1], now[1]), 0.2)
    assert found == Block(50, 50, 100, 50)


def test_a_percentile_of_few_calls_says_nothing() -> None:
    old = Statistics()
    for _ in range(50):
        old.completed(100.0)
    rows = row(1, kept=old.kept()), row(1, kept=old.kept())
    assert slow_block(rows, rows, 0.2) == NOTHING


def test_a_rollout_is_stored_as_it_is() -> None:
    seen = observed(BEGUN, Block(900, 90, 100, 10), 0.1, Block(9, 1, 2, 0))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(seen), type=Rollout) == seen
