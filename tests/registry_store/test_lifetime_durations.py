"""Durations of a version's whole life, which only rise."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store.duration_buckets import LONGEST, ZERO_KEY, as_buckets, key_of, value_of
from dspy_registry.registry_store.lifetime_durations import BOUNDS, LifetimeDurations
from dspy_registry.registry_store.usage import LARGEST_COUNT

_KEYS = st.one_of(st.just(ZERO_KEY), st.integers(key_of(0.001), key_of(LONGEST)))
_COUNTED = st.dictionaries(_KEYS, st.integers(1, 10_000), max_size=30)


def test_each_bucket_counts_below_the_bounds_that_its_value_does_not_exceed() -> None:
    for key in (ZERO_KEY, *range(key_of(0.001), key_of(LONGEST) + 1)):
        counts = LifetimeDurations().with_calls(as_buckets({key: 1})).counts
        expected = [int(value_of(key) / 1000 <= bound) for bound in BOUNDS]
        assert list(accumulate(counts)) == [*expected, 1], key


@given(st.lists(_COUNTED, max_size=6))
def test_parts_add_up_and_nothing_ever_falls(parts: list[dict[int, int]]) -> None:
    before = LifetimeDurations()
    for part in parts:
        after = before.with_calls(as_buckets(part))
        assert sum(after.counts) - sum(before.counts) == sum(part.values())
        if before.counts:
            assert all(one >= other for one, other in zip(after.counts, before.counts, strict=True))
        assert after.seconds >= before.seconds
        before = after


def test_counts_stop_at_the_largest() -> None:
    full = LifetimeDurations().with_calls(as_buckets({key_of(5.0): LARGEST_COUNT}))
    assert max(full.with_calls(as_buckets({key_of(5.0): 1})).counts) == LARGEST_COUNT
