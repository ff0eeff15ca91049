"""What docs/statistics.md says the simulator shows, and the failures that the rules were made for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import pytest

from dspy_registry.registry_store.duration_buckets import key_of, quantiles
from tests.support import ROOT
from tests.support.advisers import DECLARED_TIMEOUT, Alone, Host, Process
from tests.support.providers import (
    MEDIAN,
    Advice,
    Call,
    Durations,
    bimodal,
    call_in_turn,
    drifting,
    hanging,
    heavy_tailed,
    out,
    replayed,
    rows_of_timeouts,
    stepping,
    timeouts,
    usual,
)
from tests.support.selection import each

PAGE = ROOT / "docs" / "statistics.md"
CHANGE, CALLS = 2000, 4000
SCENARIOS: dict[str, Durations] = {
    "as fast as ever": usual,
    "1.3 × slower from call 2,000 on": stepping(1.3, CHANGE),
    "10 × slower from call 2,000 on": stepping(10, CHANGE),
    "100 × slower from call 2,000 on": stepping(100, CHANGE),
    "10 × quicker from call 2,000 on": stepping(0.1, CHANGE),
    "100 × slower, evenly, within 4,000 calls": drifting(100, CALLS),
    "5 % of calls take 20 × as long": bimodal(0.05, 20),
    "30 % of calls take 100 × as long": bimodal(0.3, 100),
    "heavy tail (Pareto, 1.5)": heavy_tailed(1.5),
    "no answer to calls 2,000 to 2,099": out(CHANGE, CHANGE + 100),
    "1 % of calls hang": hanging(0.01),
    "3 % of calls hang": hanging(0.03),
    "8 % of calls hang": hanging(0.08),
    "12 % of calls hang": hanging(0.12),
}
HEAD = (
    "| provider | timeouts in 4,000 calls | most in a row | limit at the end | 1.2 × p99 of all completed: timeouts |"
)


class Lifetime:
    """The rule before: 1.2 times the 99th percentile of all calls that ever completed."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def limit_ms(self) -> float:
        completed = self._counts.total()
        return 1.2 * quantiles(self._counts, (0.99,))[0] if completed >= 20 else DECLARED_TIMEOUT

    def record(self, duration_ms: float, limit_ms: float, timed_out: bool) -> None:
        if not timed_out:
            self._counts[key_of(duration_ms)] += 1


class Figures(NamedTuple):
    timeouts: int
    most_in_row: int
    limit: float


def figures(durations: Durations, advice: Advice) -> Figures:
    calls = call_in_turn(durations, advice, CALLS)
    limit = median(call.limit for call in calls[-200:])
    return Figures(timeouts(calls), max(map(len, rows_of_timeouts(calls)), default=0), limit)


def row(name: str) -> str:
    now, before = figures(SCENARIOS[name], Alone()), figures(SCENARIOS[name], Lifetime())
    seconds = float(f"{now.limit / 1000:.2g}")
    return f"| {name} | {now.timeouts:,} | {now.most_in_row} | {seconds:g} s | {before.timeouts:,} |"


@pytest.mark.parametrize("name", each(3, SCENARIOS))
def test_the_page_shows_what_the_simulator_shows(name: str) -> None:
    assert row(name) in PAGE.read_text(encoding="utf-8").splitlines()


def test_the_page_shows_nothing_else() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    begin = lines.index(HEAD) + 2
    shown = [line.split("|")[1].strip() for line in lines[begin : lines.index("", begin)]]
    assert shown == list(SCENARIOS)


# What a change costs


def cost_of(factor: float, runs: int, adviser: Callable[[], Advice] = Alone) -> list[int]:
    """Timeouts in the 100 calls after a provider slowed, in each of the runs."""
    made = [call_in_turn(stepping(factor, CHANGE), adviser(), CHANGE + 100, seed=seed) for seed in range(runs)]
    return [timeouts(calls[CHANGE:]) for calls in made]


some_runs = pytest.mark.parametrize("runs", [5, pytest.param(20, marks=pytest.mark.full)])


@some_runs
@pytest.mark.parametrize(("factor", "usually", "most"), [(1.3, 0, 1), (10, 3, 4), (100, 6, 7)])
def test_a_slower_provider_costs_few_timeouts(factor: float, usually: int, most: int, runs: int) -> None:
    cost = cost_of(factor, runs)
    assert median(cost) == usually
    assert max(cost) <= most


@some_runs
@pytest.mark.parametrize(("factor", "most"), [(1.3, 2), (10, 4), (100, 7)])
def test_it_costs_no_more_where_reports_are_merged_late(factor: float, most: int, runs: int) -> None:
    assert max(cost_of(factor, runs, lambda: Process(Host(), 50))) <= most


def test_the_first_completed_call_after_an_outage_restores_the_limit() -> None:
    calls = call_in_turn(out(CHANGE, CHANGE + 100), Alone(), CHANGE + 102)
    before, last, first, then = (calls[at].limit for at in (CHANGE - 1, CHANGE + 99, CHANGE + 100, CHANGE + 101))
    assert last == first == Alone().ceiling
    assert then == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize(("share", "seconds"), [(0.03, 3.2), (0.08, 3.8)])
def test_where_some_calls_hang_the_limit_stays_near_24_times_the_p90(share: float, seconds: float) -> None:
    calls = call_in_turn(hanging(share), Alone(), 20_000)
    assert median(call.limit for call in calls[4000:]) == pytest.approx(seconds * 1000, rel=0.05)


def test_where_fewer_calls_hang_than_the_p99_shows_the_limit_is_at_most_that() -> None:
    calls = call_in_turn(hanging(0.01), Alone(), 20_000)
    assert median(call.limit for call in calls[4000:]) < 3200


@pytest.mark.parametrize("factor", [10, 100])
def test_a_slow_spell_is_forgotten_within_2048_calls(factor: float) -> None:
    end = 6000
    calls = call_in_turn(stepping(factor, 3000, end), Alone(), end + 2100)
    settled = next(at for at in range(end, len(calls)) if calls[at].limit < 4 * MEDIAN)
    assert settled - end < 2048
    assert all(call.limit < 4 * MEDIAN for call in calls[settled : settled + 20])


# What went wrong before


@pytest.mark.parametrize("basis", ["observed", "auto"])
def test_a_record_that_declares_more_begins_with_what_it_declares(basis: str) -> None:
    """2,000 calls at 100 ms, then a record that declares 10 s: every later call was told 121 ms, and timed out."""
    call_in_turn(replayed([100.0] * 2000), Alone(basis), 2000)
    after = call_in_turn(replayed([10_000.0] * 100), Alone(basis, declared=12_000.0), 100)
    assert timeouts(after) == 0


def test_auto_keeps_to_a_higher_declaration_even_with_the_old_statistics() -> None:
    advice = Alone("auto")
    call_in_turn(replayed([100.0] * 2000), advice, 2000)
    advice.declared = 12_000.0
    assert timeouts(call_in_turn(replayed([10_000.0] * 100), advice, 100)) == 0


def test_a_provider_that_slows_from_100_to_130_ms_is_still_called() -> None:
    """0 of 40 succeeded."""
    advice = Alone()
    calls = call_in_turn(replayed([100.0] * 2000 + [130.0] * 40), advice, 2040)
    assert timeouts(calls[2000:]) == 0
    before = call_in_turn(replayed([100.0] * 2000 + [130.0] * 40), Lifetime(), 2040)
    assert timeouts(before[2000:]) == 40


def test_a_fast_model_in_place_of_a_slow_one_is_not_held_to_the_slow_ones_time() -> None:
    """After 500 fast calls `auto` still said 12 s."""
    call_in_turn(replayed([10_000.0] * 500), Alone("auto", declared=12_000.0), 500)
    quick = Alone("auto")
    call_in_turn(replayed([MEDIAN] * 500), quick, 500)
    assert quick.limit_ms() == DECLARED_TIMEOUT
    quick.basis = "observed"
    assert quick.limit_ms() < 2 * MEDIAN


# What the page warns of


def test_calls_much_slower_than_the_p90_and_rare_count_as_hanging() -> None:
    """5 % of calls take 100 times as long: they are cut off at 24 times the p90, again and again."""
    calls: list[Call] = call_in_turn(bimodal(0.05, 100), Alone(), CALLS)
    assert timeouts(calls[1000:]) > 0.03 * (CALLS - 1000)
    assert median(call.limit for call in calls[1000:]) < 5000


def test_where_more_than_one_in_ten_is_that_slow_they_complete() -> None:
    calls = call_in_turn(bimodal(0.15, 100), Alone(), CALLS)
    assert timeouts(calls[1000:]) < 0.01 * (CALLS - 1000)
