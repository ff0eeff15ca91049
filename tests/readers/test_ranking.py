"""The ranking against a plain model that follows docs/routing.md sentence by sentence."""

from __future__ import annotations

from math import isclose, sqrt
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from dspy_registry import InvalidArgumentError
from dspy_registry.readers.ranking import Facts, Field, Limits, Ranked, Ranking, failure_rate, prior_rate
from dspy_registry.readers.ranking import rank as rank_field


def rank(found: list[Facts], prefer: Any, asked: Limits) -> Ranking:
    """In a field that was ranked for others before: what it keeps changes nothing."""
    field = Field(found)
    for other in ("latency", "cost"):
        rank_field(field, other, Limits())
    ranking = rank_field(field, prefer, asked)
    assert rank_field(field, prefer, asked) == ranking
    return ranking


STATES = st.sampled_from(("closed", "closed", "closed", "open", "half_open"))
NUMBERS = st.sampled_from((0.0, 0.5, 1.0, 100.0, 250.0, 1000.0))


@st.composite
def facts(draw: st.DrawFn, name: str) -> Facts:
    counted = draw(st.integers(0, 60))
    state = draw(STATES)
    return Facts(
        name,
        draw(st.integers(1, 3)),
        draw(NUMBERS),
        draw(NUMBERS),
        draw(st.none() | st.sampled_from((0.0, 0.001, 0.02))),
        draw(st.integers(0, counted)),
        counted,
        prior_rate(draw(st.integers(0, 5)), draw(st.integers(5, 40))),
        state,
        draw(st.floats(1.0, 9.0)) if state == "open" else 0.0,
    )


@st.composite
def candidates(draw: st.DrawFn) -> list[Facts]:
    return [draw(facts(f"acme.M{number}")) for number in range(draw(st.integers(0, 7)))]


ASKED = st.builds(
    Limits,
    st.none() | st.sampled_from((50.0, 300.0)),
    st.none() | st.sampled_from((0.0, 0.005)),
    st.sets(st.sampled_from(("acme.M0", "acme.M1", "acme.M2")), max_size=2),
    st.none() | st.just(lambda each, unit: each.facts.name != "acme.M3" and unit in ("usd", "compute_seconds")),
)


@given(candidates(), st.sampled_from(("balanced", "latency", "cost", "reliability")), ASKED)
def test_i30_the_last_candidate_is_never_refused_in_silence(
    given_facts: list[Facts], prefer: str, asked: Limits
) -> None:
    found = rank(given_facts, prefer, asked)
    assert len(found.ranked) + len(found.excluded) == len(given_facts)
    assert all(each.reason and each.detail for each in found.excluded)
    if not found.ranked:
        assert "health" not in {each.reason for each in found.excluded}
    elif found.degraded:
        (last,) = found.ranked
        assert last.facts.until == min(
            [last.facts.until, *(each.facts.until for each in found.excluded if each.reason == "health")]
        )
    else:
        assert all(each.facts.state != "open" for each in found.ranked)


def modelled(given_facts: list[Facts], prefer: str, asked: Limits) -> tuple[list[str], dict[str, str], str, bool]:
    """Names in order, reasons by name, the unit, whether degraded."""
    reasons: dict[str, str] = {}
    for each in given_facts:
        if each.name in asked.exclude:
            reasons[each.name] = "exclude"
        elif asked.deadline_ms is not None and each.expected_ms > asked.deadline_ms:
            reasons[each.name] = "deadline"
        elif asked.max_cost_usd is not None and each.usd is None:
            reasons[each.name] = "cost_unknown"
        elif asked.max_cost_usd is not None and each.usd is not None and each.usd > asked.max_cost_usd:
            reasons[each.name] = "cost"
    left = [each for each in given_facts if each.name not in reasons]
    unit = "usd" if all(each.usd is not None for each in left) else "compute_seconds"
    for each in left:
        if asked.accept is not None and each.name == "acme.M3":
            reasons[each.name] = "filter"
    left = [each for each in left if each.name not in reasons]
    usable = [each for each in left if each.state != "open"]
    if left and not usable:
        first = min(left, key=lambda each: each.until)
        reasons.update({each.name: "health" for each in left if each is not first})
        return [first.name], reasons, unit, True
    reasons.update({each.name: "health" for each in left if each.state == "open"})

    def key(each: Facts) -> tuple[float, ...]:
        rate = min(0.9, (each.failed + 10 * each.prior) / (each.counted + 10))
        duration = max(1.0, each.expected_ms)
        cost = max(1e-6, each.usd if unit == "usd" and each.usd is not None else each.compute_seconds)
        score = {
            "latency": (duration / (1 - rate),),
            "cost": (cost / (1 - rate),),
            "balanced": (sqrt(duration) * sqrt(cost) / (1 - rate),),
            "reliability": (rate, each.expected_ms),
        }[prefer]
        return (each.state == "half_open", *score)

    return [each.name for each in sorted(usable, key=key)], reasons, unit, False


def told(ranking: Ranking) -> tuple[list[str], dict[str, str], str, bool]:
    names = [each.facts.name for each in ranking.ranked]
    reasons = {each.facts.name: each.reason for each in ranking.excluded}
    return names, dict(reasons), ranking.unit, ranking.degraded


@given(candidates(), st.sampled_from(("balanced", "latency", "cost", "reliability")), ASKED)
def test_the_ranking_is_what_the_page_says(found: list[Facts], prefer: str, asked: Limits) -> None:
    ranking = rank(found, prefer, asked)
    assert told(ranking) == modelled(found, prefer, asked)
    assert rank(found, prefer, asked) == ranking
    for each in ranking.ranked:
        assert isclose(each.failure_rate, failure_rate(each.facts.failed, each.facts.counted, each.facts.prior))
        assert each.is_probe == (each.facts.state == "half_open")


@given(candidates(), ASKED)
def test_no_candidate_is_lost(found: list[Facts], asked: Limits) -> None:
    ranking = rank(found, "balanced", asked)
    assert sorted(each.facts.name for each in (*ranking.ranked, *ranking.excluded)) == [each.name for each in found]
    if not ranking.ranked:
        assert all(each.reason != "health" for each in ranking.excluded)


def made(name: str, **changes: Any) -> Facts:
    return replace(Facts(name, 1, 100.0, 1.0, None, 0, 0, 0.02, "closed", 0.0), **changes)


def test_ties_keep_the_order_given() -> None:
    found = [made("b"), made("a"), made("c")]
    assert [each.facts.name for each in rank(found, "balanced", Limits()).ranked] == ["b", "a", "c"]


def test_a_function_orders_the_candidates_and_may_leave_some_out() -> None:
    found = [made("a"), made("b", state="half_open"), made("c")]

    def order(ranked: tuple[Ranked, ...], unit: str) -> list[Ranked]:
        assert unit == "compute_seconds"
        return sorted((each for each in ranked if each.facts.name != "a"), key=lambda each: each.facts.name)

    ranking = rank(found, order, Limits())
    assert [each.facts.name for each in ranking.ranked] == ["c", "b"]
    assert [(each.facts.name, each.reason) for each in ranking.excluded] == [("a", "preference")]


@pytest.mark.parametrize("prefer", ["quickest", None, 5, lambda ranked, unit: ["a"], lambda ranked, unit: None])
def test_a_preference_that_means_nothing_is_refused(prefer: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        rank([made("a")], prefer, Limits())


@pytest.mark.parametrize(("failed", "counted", "rate"), [(0, 19, 0.02), (0, 20, 0.0), (5, 20, 0.25), (19, 19, 0.02)])
def test_a_version_without_a_life_has_the_default_prior(failed: int, counted: int, rate: float) -> None:
    assert prior_rate(failed, counted) == rate


def test_a_failure_rate_is_bounded() -> None:
    assert failure_rate(0, 0, 0.02) == 0.02
    assert failure_rate(10_000, 10_000, 1.0) == 0.9
