"""The statistics of one version and size: what each call changes, and that reports of it say the same."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store.advice import Standing
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.evidence import Evidence, Gathered
from dspy_registry.registry_store.statistics import CALLS_TO_JUDGE_LIMITS, Kept, Statistics
from tests.support.providers import MEDIAN, usual

CEILING = 120_000.0


class Ended(NamedTuple):
    """A call: its duration or its limit, in milliseconds."""

    milliseconds: float
    timed_out: bool


COMPLETED = st.builds(Ended, st.floats(1, 100_000), st.just(False))
TIMED_OUT = st.builds(Ended, st.floats(1, 100_000), st.just(True))
CALLS = st.lists(st.one_of(COMPLETED, COMPLETED, TIMED_OUT), max_size=200)


def counted(calls: list[Ended], statistics: Statistics | None = None) -> Statistics:
    statistics = statistics or Statistics()
    for call in calls:
        if call.timed_out:
            statistics.timed_out(call.milliseconds, CEILING)
        else:
            statistics.completed(call.milliseconds)
    return statistics


def reported(calls: list[Ended]) -> Evidence:
    gathered = Gathered()
    for call in calls:
        if call.timed_out:
            gathered.timed_out(call.milliseconds)
        else:
            gathered.completed(call.milliseconds)
    return gathered.evidence()


def completed(milliseconds: float, calls: int = 1) -> list[Ended]:
    return [Ended(milliseconds, False)] * calls


def timed_out(limit: float, calls: int = 1) -> list[Ended]:
    return [Ended(limit, True)] * calls


# The window


def test_a_version_begins_with_nothing() -> None:
    assert Statistics().standing() == Standing()


def test_a_completed_call_counts_as_long_as_it_took() -> None:
    standing = counted(completed(100, 90) + completed(1000, 10)).standing()
    assert (standing.completed, standing.longest, standing.backoff) == (100, 1000, 0)
    assert (standing.p50, standing.p90, standing.p99) == pytest.approx((100, 100, 1000), rel=0.011)


@pytest.mark.parametrize(
    ("limit", "counts_as"),
    [(300, 600), (1500, 2000), (100_000, 2000)],
    ids=["twice the limit", "20 times the p90", "not more than that"],
)
def test_a_timeout_counts_as_longer_than_it_was(limit: float, counts_as: float) -> None:
    statistics = counted(completed(100, 50) + timed_out(limit))
    assert statistics._window.quantiles(1.0) == pytest.approx([counts_as], rel=0.011)


def test_a_timeout_counts_as_no_longer_than_the_ceiling() -> None:
    statistics = Statistics()
    statistics.timed_out(CEILING, CEILING)
    assert statistics._window.quantiles(1.0) == pytest.approx([CEILING], rel=0.011)


@given(st.integers(0, 20))
def test_of_timeouts_in_a_row_three_enter_the_window(calls: int) -> None:
    statistics = counted(completed(100, 50) + timed_out(300, calls))
    assert statistics._window.total == 50 + min(3, calls)
    assert counted(completed(100) + timed_out(300, calls), statistics)._window.total == 51 + 2 * min(3, calls)


# The backoff and the longest


def test_a_timeout_doubles_the_limit_until_a_call_completes() -> None:
    statistics = Statistics()
    backoffs = []
    for limit in (1000, 2000, 1500, 70_000, 100_000):
        statistics.timed_out(limit, CEILING)
        backoffs.append(statistics.standing().backoff)
    assert backoffs == [2000, 4000, 4000, CEILING, CEILING]
    statistics.completed(50)
    assert statistics.standing().backoff == 0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=100))
def test_the_longest_is_that_of_the_last_16_to_32(durations: list[float]) -> None:
    longest = counted([Ended(duration, False) for duration in durations]).standing().longest
    assert max(durations[-16:]) <= longest <= max(durations[-32:])


# Whose fault a timeout was


def test_a_limit_below_the_p90_is_the_callers_own() -> None:
    statistics = counted(completed(100, CALLS_TO_JUDGE_LIMITS))
    before = statistics.kept()
    assert not statistics.timed_out(90, CEILING)
    assert statistics.kept() == before
    assert statistics.timed_out(105, CEILING)


def test_while_few_calls_have_completed_every_limit_is_believed() -> None:
    statistics = counted(completed(100, CALLS_TO_JUDGE_LIMITS - 1))
    assert statistics.timed_out(1, CEILING)


def test_timeouts_alone_never_make_a_limit_the_callers_own() -> None:
    """Else a limit that is below what timeouts count as would be disbelieved, and never raised."""
    statistics = counted((timed_out(1000, 3) + completed(100)) * 30)
    assert statistics.timed_out(1000, CEILING)


# Reports


@given(CALLS)
def test_reports_of_one_call_each_are_the_calls(calls: list[Ended]) -> None:
    one, other = Statistics(), Statistics()
    for call in calls:
        counted([call], one)
        other.merge(reported([call]), CEILING)
    assert other.kept().recent == one.kept().recent
    assert other.standing().completed == one.standing().completed
    assert other._window.total == one._window.total
    # A limit travels as its bucket, so twice the limit may fall into the next one; a p90 that moved moves more.
    if not any(call.timed_out for call in calls):
        assert other.kept() == one.kept()


@given(CALLS, st.lists(st.integers(0, 200), max_size=10))
def test_however_calls_are_cut_into_reports_backoff_and_counts_are_the_same(
    calls: list[Ended], cuts: list[int]
) -> None:
    calls = calls[:CALLS_TO_JUDGE_LIMITS]  # with more, whose fault a timeout was may depend on what was merged before
    one, other = counted(calls), Statistics()
    bounds = [0, *sorted(cuts), len(calls)]
    for begin, end in pairwise(bounds):
        other.merge(reported(calls[begin:end]), CEILING)
    wanted, found = one.standing(), other.standing()
    assert (found.backoff, found.completed) == (wanted.backoff, wanted.completed)
    assert other.kept().recent.in_row == one.kept().recent.in_row
    assert other._window.total == one._window.total
    durations = [call.milliseconds for call in calls if not call.timed_out]
    assert max(durations[-16:], default=0) <= found.longest <= max(durations[-64:], default=0)


def test_reports_tell_how_many_timeouts_were_the_callers_own() -> None:
    statistics = counted(completed(100, 50))
    calls = timed_out(50, 5) + timed_out(150) + completed(100) + timed_out(50, 4) + timed_out(200)
    assert statistics.merge(reported(calls), CEILING) == 9
    assert statistics.standing().backoff == 400


def test_a_report_from_another_process_may_end_an_outage() -> None:
    statistics = counted(completed(100, 50))
    statistics.merge(reported(timed_out(200, 7)), CEILING)
    statistics.merge(reported(timed_out(400, 7)), CEILING)
    assert statistics._window.total == 53
    assert statistics.standing().backoff == 800
    statistics.merge(reported(completed(100)), CEILING)
    assert statistics.standing().backoff == 0


def test_a_large_report_is_in_order_at_its_end() -> None:
    random = Random(1)
    calls = [Ended(usual(random, call), False) for call in range(50_000)] + timed_out(5000, 2)
    statistics = Statistics()
    statistics.merge(reported(calls), CEILING)
    standing = statistics.standing()
    assert standing.completed == 50_000
    assert standing.longest == max(call.milliseconds for call in calls[-34:-2])
    assert standing.backoff == 10_000
    assert standing.p50 == pytest.approx(MEDIAN, rel=0.05)


# What is stored and sent


@given(CALLS)
def test_it_goes_on_from_what_is_stored(calls: list[Ended]) -> None:
    half = len(calls) // 2
    stored = msgspec.msgpack.decode(encode(counted(calls[:half]).kept()), type=Kept)
    assert counted(calls[half:], Statistics(stored)).kept() == counted(calls).kept()


def test_going_on_does_not_change_what_it_came_from() -> None:
    kept = counted(completed(100, 20)).kept()
    before = encode(kept)
    counted(timed_out(1000, 5), Statistics(kept))
    assert encode(kept) == before


@given(CALLS)
def test_a_report_travels(calls: list[Ended]) -> None:
    sent = reported(calls)
    assert msgspec.msgpack.decode(encode(sent), type=Evidence) == sent


@pytest.mark.parametrize("value", [-1.0, 1e30])
def test_durations_that_cannot_be_are_bounded(value: float) -> None:
    sent = reported(completed(value) + timed_out(value))
    assert msgspec.msgpack.decode(encode(sent), type=Evidence) == sent


@given(st.integers(4000, 9000))
def test_gathering_many_calls_loses_none(calls: int) -> None:
    durations = [float(call % 97 + 1) for call in range(calls)]
    sent = reported([Ended(duration, False) for duration in durations])
    assert sum(count for _, count in sent.completed.counts) == calls
    assert sent.recent == (max(durations[-16:]), max(durations[-32:-16]))
