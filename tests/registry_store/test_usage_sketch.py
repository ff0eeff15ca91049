"""The sketch of durations: what is read from it after any number of merges is near what was exactly so."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry import Durations
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.duration_sketch import LONGEST, RELATIVE_ACCURACY, SHORTEST, DurationSketch, together
from dspy_registry.registry_store.usage import Buckets

DURATIONS = st.floats(SHORTEST, LONGEST)
PARTS = st.lists(st.lists(DURATIONS, max_size=60), min_size=1, max_size=8).filter(any)
FRACTIONS = st.sampled_from([0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0])


def sketch_of(durations: list[float]) -> DurationSketch:
    sketch = DurationSketch()
    for duration in durations:
        sketch.add(duration)
    return sketch


def exact(durations: list[float], fraction: float) -> float:
    return sorted(durations)[math.floor(fraction * (len(durations) - 1))]


def test_the_accuracy_is_what_is_promised() -> None:
    assert RELATIVE_ACCURACY <= 0.02


@given(PARTS, FRACTIONS)
def test_a_quantile_of_merged_parts_is_within_two_percent(parts: list[list[float]], fraction: float) -> None:
    merged = DurationSketch()
    for part in parts:
        merged.merge(DurationSketch(sketch_of(part).dump()))  # as it travels and as it is stored
        merged = DurationSketch(merged.dump())
    wanted = exact([duration for part in parts for duration in part], fraction)
    assert merged.quantile(fraction) == pytest.approx(wanted, rel=0.02)


@given(PARTS)
def test_merging_parts_is_adding_all(parts: list[list[float]]) -> None:
    merged = DurationSketch()
    for part in parts:
        merged.merge(sketch_of(part))
    assert merged.dump() == sketch_of([duration for part in parts for duration in part]).dump()
    assert merged.dump() == together(sketch_of(part).dump() for part in parts)
    assert merged.summary().calls == sum(map(len, parts))


def test_a_bimodal_distribution_keeps_both_modes() -> None:
    sketch = sketch_of([2.0] * 950 + [60_000.0] * 50)
    assert sketch.quantile(0.5) == pytest.approx(2.0, rel=0.02)
    assert sketch.quantile(0.99) == pytest.approx(60_000.0, rel=0.02)


def test_what_lies_outside_counts_as_the_nearest() -> None:
    assert sketch_of([0.0, -5.0, SHORTEST / 2]).summary() == Durations(3)
    assert sketch_of([LONGEST * 1e9]).quantile(0.5) == pytest.approx(LONGEST, rel=0.02)


def test_an_empty_sketch_says_nothing() -> None:
    assert DurationSketch().summary() == Durations()
    assert DurationSketch().dump() == Buckets()


def test_its_size_is_bounded_by_what_durations_there_are() -> None:
    steps = round(math.log(LONGEST / SHORTEST) / math.log(1.001))
    buckets = sketch_of([SHORTEST * 1.001**step for step in range(steps)]).dump()
    assert len(buckets.counts) < 1500
    assert len(encode(buckets)) < 10_000
