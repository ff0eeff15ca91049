"""The buckets of weighted labels against a plain table: shares are exact, and no key moves that need not."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store.buckets import (
    BUCKETS,
    MAX_VERSIONS,
    Run,
    assign,
    bucket_in,
    hash_of,
    heaviest,
    shares,
    targets,
    version_at,
    weight_problems,
)

WEIGHTS = st.dictionaries(
    st.integers(1, 40), st.one_of(st.integers(1, 100), st.floats(0.001, 1000.0)), min_size=1, max_size=MAX_VERSIONS
)


def table(runs: tuple[Run, ...]) -> list[int]:
    return [version for version, length in runs for _ in range(length)]


@given(WEIGHTS)
def test_every_version_has_its_share(weights: dict[int, float]) -> None:
    counts = targets(weights)
    assert sum(counts.values()) == BUCKETS
    total = sum(weights.values())
    for version, weight in weights.items():
        assert counts[version] >= 1
        assert abs(counts[version] - weight / total * BUCKETS) <= MAX_VERSIONS
    assert shares(assign(weights)) == counts


@given(st.lists(WEIGHTS, min_size=2, max_size=6))
def test_a_change_of_weights_moves_only_what_it_must(changes: list[dict[int, float]]) -> None:
    runs = assign(changes[0])
    for weights in changes[1:]:
        before, runs = runs, assign(weights, runs)
        assert shares(runs) == targets(weights)
        moved = sum(one != other for one, other in zip(table(before), table(runs), strict=True))
        old, new = Counter(shares(before)), Counter(shares(runs))
        assert moved == sum((new - old).values())
        assert all(one[0] != other[0] for one, other in pairwise(runs))
        assert assign(weights, runs) == runs


def test_a_key_draws_the_same_bucket_everywhere() -> None:
    assert bucket_in(hash_of("acme.Qa", "live"), "user-17") == 3691
    assert bucket_in(hash_of("acme.Qa", "live"), "user-17") != bucket_in(hash_of("acme.Other", "live"), "user-17")
    assert 0 <= bucket_in(hash_of("acme.Qa", "live"), "\ud800") < BUCKETS


def test_a_hundred_thousand_keys_are_split_as_the_weights_say() -> None:
    runs = assign({3: 90, 4: 10})
    drawn = Counter(
        version_at(runs, bucket_in(hash_of("acme.Qa", "live"), f"user-{number}")) for number in range(100_000)
    )
    assert abs(drawn[4] / 100_000 - 0.1) < 0.006
    assert set(drawn) == {3, 4}


def test_without_a_key_the_heaviest_is_meant() -> None:
    assert heaviest(assign({3: 90, 4: 10})) == 3
    assert heaviest(assign({3: 50, 4: 50})) == 4


@pytest.mark.parametrize(
    ("weights", "count"),
    [
        ({}, 1),
        ({1: 0, 2: -1, 3: float("nan"), 4: True}, 4),
        ({1: 10**400, 2: 1e308}, 2),
        (dict.fromkeys(range(1, 18), 1), 1),
    ],
)
def test_what_is_wrong_with_weights_is_told(weights: dict[int, float], count: int) -> None:
    assert len(weight_problems(weights)) == count
    assert weight_problems({1: 1}) == []
