"""The buckets without DDSketch's library: the same ones, the same quantiles, and even thinning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store import duration_buckets, duration_sketch
from dspy_registry.registry_store.duration_buckets import (
    as_buckets,
    by_key,
    every_nth,
    key_of,
    keys_of,
    quantiles,
    value_of,
)
from dspy_registry.registry_store.duration_sketch import DurationSketch

DURATIONS = st.one_of(st.floats(0, 0.01), st.floats(0, duration_sketch.LONGEST * 2))
COUNTS = st.dictionaries(st.integers(-400, 1200), st.integers(1, 3000), max_size=40)
FRACTIONS = (0.0, 0.01, 0.5, 0.9, 0.99, 1.0)


def ranks(counts: dict[int, int]) -> list[int]:
    """Every duration's key, in order."""
    return [key for key in sorted(counts) for _ in range(counts[key])]


def test_the_bounds_are_those_of_the_sketch() -> None:
    for name in ("RELATIVE_ACCURACY", "SHORTEST", "LONGEST"):
        assert getattr(duration_buckets, name) == getattr(duration_sketch, name)


@given(st.lists(DURATIONS, max_size=100))
def test_quantiles_are_those_of_the_sketch(durations: list[float]) -> None:
    sketch = DurationSketch()
    for duration in durations:
        sketch.add(duration)
    counts = by_key(sketch.dump())
    wanted = [sketch.quantile(fraction) for fraction in FRACTIONS]
    assert quantiles(counts, FRACTIONS) == pytest.approx(wanted)
    assert as_buckets(counts) == sketch.dump()


@given(st.floats(duration_sketch.SHORTEST, duration_sketch.LONGEST))
def test_a_bucket_stands_for_what_falls_into_it(duration: float) -> None:
    assert value_of(key_of(duration)) == pytest.approx(duration, rel=0.0101)


@given(st.lists(DURATIONS))
def test_keys_of_many_are_those_of_each(durations: list[float]) -> None:
    assert list(keys_of(durations)) == [key_of(duration) for duration in durations]


def test_what_lies_outside_counts_as_the_nearest() -> None:
    assert value_of(key_of(0.0)) == value_of(key_of(-1.0)) == 0.0
    assert key_of(float("inf")) == key_of(duration_sketch.LONGEST)


@given(COUNTS, st.integers(1, 7))
def test_every_nth_takes_every_nth_rank(counts: dict[int, int], n: int) -> None:
    assert ranks(every_nth(counts, n)) == ranks(counts)[n - 1 :: n]


@given(COUNTS, st.integers(1, 7))
def test_the_parts_are_together_the_whole(counts: dict[int, int], n: int) -> None:
    parts = [every_nth(counts, n, start) for start in range(n)]
    assert sorted(rank for part in parts for rank in ranks(part)) == ranks(counts)
    sizes = [sum(part.values()) for part in parts]
    assert max(sizes) - min(sizes) <= 1
