"""The buckets without DDSketch's library: the same ones, the same quantiles, and even thinning."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import pytest
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.duration_buckets import (
    LONGEST,
    RELATIVE_ACCURACY,
    SHORTEST,
    added,
    as_buckets,
    by_key,
    every_nth,
    key_of,
    keys_of,
    quantiles,
    value_of,
)

DURATIONS = st.one_of(st.floats(0, 0.01), st.floats(0, LONGEST * 2))
COUNTS = st.dictionaries(st.integers(-400, 1200), st.integers(1, 3000), max_size=40)
FRACTIONS = (0.0, 0.01, 0.5, 0.9, 0.99, 1.0)
FRACTION = st.sampled_from(FRACTIONS)


def ranks(counts: dict[int, int]) -> list[int]:
    """Every duration's key, in order."""
    return [key for key in sorted(counts) for _ in range(counts[key])]


def counted(durations: Iterable[float]) -> dict[int, int]:
    return dict(Counter(map(key_of, durations)))


@given(st.lists(DURATIONS, max_size=100))
def test_quantiles_are_those_of_the_sketch(durations: list[float]) -> None:
    """DDSketch's library says where a duration belongs and what its bucket stands for."""
    sketch = BaseDDSketch(LogarithmicMapping(RELATIVE_ACCURACY), DenseStore(), DenseStore(), 0.0)
    for duration in durations:
        sketch.add(0.0 if duration < SHORTEST else min(duration, LONGEST))
    wanted = [sketch.get_quantile_value(fraction) or 0.0 for fraction in FRACTIONS]
    assert quantiles(counted(durations), FRACTIONS) == pytest.approx(wanted)


@given(st.lists(st.lists(st.floats(SHORTEST, LONGEST), max_size=60), min_size=1, max_size=8).filter(any), FRACTION)
def test_a_quantile_of_merged_parts_is_within_one_percent(parts: list[list[float]], fraction: float) -> None:
    merged: dict[int, int] = {}
    for part in parts:
        added(merged, by_key(as_buckets(counted(part))).items())  # as it travels and as it is stored
    durations = sorted(duration for part in parts for duration in part)
    exact = durations[math.floor(fraction * (len(durations) - 1))]
    assert quantiles(merged, [fraction]) == pytest.approx([exact], rel=0.0101)
    assert merged == counted(durations)


def test_the_size_is_bounded_by_what_durations_there_are() -> None:
    steps = round(math.log(LONGEST / SHORTEST) / math.log(1.001))
    buckets = as_buckets(counted(SHORTEST * 1.001**step for step in range(steps)))
    assert len(buckets.counts) < 1500
    assert len(encode(buckets)) < 10_000


@given(st.floats(SHORTEST, LONGEST))
def test_a_bucket_stands_for_what_falls_into_it(duration: float) -> None:
    assert value_of(key_of(duration)) == pytest.approx(duration, rel=0.0101)


@given(st.lists(DURATIONS))
def test_keys_of_many_are_those_of_each(durations: list[float]) -> None:
    assert list(keys_of(durations)) == [key_of(duration) for duration in durations]


def test_what_lies_outside_counts_as_the_nearest() -> None:
    assert value_of(key_of(0.0)) == value_of(key_of(-1.0)) == 0.0
    assert key_of(float("inf")) == key_of(LONGEST)


@given(COUNTS, st.integers(1, 7))
def test_every_nth_takes_every_nth_rank(counts: dict[int, int], n: int) -> None:
    assert ranks(every_nth(counts, n)) == ranks(counts)[n - 1 :: n]


@given(COUNTS, st.integers(1, 7))
def test_the_parts_are_together_the_whole(counts: dict[int, int], n: int) -> None:
    parts = [every_nth(counts, n, start) for start in range(n)]
    assert sorted(rank for part in parts for rank in ranks(part)) == ranks(counts)
    sizes = [sum(part.values()) for part in parts]
    assert max(sizes) - min(sizes) <= 1
