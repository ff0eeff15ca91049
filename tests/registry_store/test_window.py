"""The window against the plainest model of it: the list of the last durations."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.duration_buckets import key_of
from dspy_registry.registry_store.window import BLOCK, Window
from tests.support.providers import MEDIAN, bimodal, heavy_tailed, stepping, usual

FRACTIONS = (0.5, 0.9, 0.99)
PROVIDERS = {
    "usual": usual,
    "bimodal": bimodal(0.05, 20),
    "heavy tail": heavy_tailed(1.5),
    "10 x slower": stepping(10, 2500),
    "100 x quicker": stepping(0.01, 2500),
}


def exact(durations: list[float], fraction: float) -> float:
    return sorted(durations)[math.floor(fraction * (len(durations) - 1))]


def filled(durations: list[float]) -> Window:
    window = Window()
    for duration in durations:
        window.add(duration)
    return window


def parts_of(durations: list[float], size: int) -> list[dict[int, int]]:
    return [Counter(map(key_of, durations[at : at + size])) for at in range(0, len(durations), size)]


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("calls", [1, 1023, 1024, 1025, 2048, 2049, 3000, 3500, 9000])
def test_it_is_the_list_of_the_last_1024_to_2048(name: str, calls: int) -> None:
    random = Random(1)
    durations = [PROVIDERS[name](random, call) for call in range(calls)]
    window = filled(durations)
    assert window.total == calls if calls <= 2 * BLOCK else BLOCK < window.total <= 2 * BLOCK
    wanted = [exact(durations[-window.total :], fraction) for fraction in FRACTIONS]
    assert window.quantiles(*FRACTIONS) == pytest.approx(wanted, rel=0.0101)


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("size", [2, 37, 500, 1024])
def test_merged_in_parts_it_is_still_the_list_of_the_last(name: str, size: int) -> None:
    random = Random(1)
    durations = [PROVIDERS[name](random, call) for call in range(4096)]
    window = Window()
    for part in parts_of(durations, size):
        window.merge(part)
    assert BLOCK <= window.total < 2 * (BLOCK + size)
    wanted = [exact(durations[-window.total :], fraction) for fraction in FRACTIONS]
    assert window.quantiles(*FRACTIONS) == pytest.approx(wanted, rel=0.0101)


@given(st.dictionaries(st.integers(-300, 900), st.integers(1, 100_000), min_size=1))
def test_of_a_large_part_it_keeps_an_even_selection(counts: dict[int, int]) -> None:
    window = Window()
    window.merge(counts)
    assert BLOCK // 2 < window.total <= BLOCK or window.total == sum(counts.values()) <= BLOCK
    _, newer = window.dump()
    kept = dict(newer.counts)
    assert max(kept) == max(counts)
    scale = sum(counts.values()) / window.total
    assert all(abs(kept.get(key, 0) - counts[key] / scale) <= 2 for key in counts)


def test_what_is_older_than_2048_calls_is_forgotten_altogether() -> None:
    window = filled([10_000.0] * 5000 + [MEDIAN] * 2 * BLOCK)
    assert window.quantiles(0.0, 1.0) == pytest.approx([MEDIAN] * 2, rel=0.0101)


def test_a_change_shows_in_the_tail_at_once() -> None:
    window = filled([MEDIAN] * 5000 + [10 * MEDIAN] * 25)
    assert window.quantiles(0.5, 0.99) == pytest.approx([MEDIAN, 10 * MEDIAN], rel=0.0101)


def test_nothing_merged_changes_nothing() -> None:
    window = filled([MEDIAN] * BLOCK)
    before = window.dump()
    window.merge({})
    assert window.dump() == before


@given(st.lists(st.floats(0, 1e9), max_size=BLOCK + 50))
def test_it_is_restored_from_what_it_dumps(durations: list[float]) -> None:
    window = filled(durations)
    restored = Window(*window.dump())
    assert restored.dump() == window.dump()
    assert restored.quantiles(*FRACTIONS) == window.quantiles(*FRACTIONS)


def test_a_stored_window_is_small() -> None:
    random = Random(1)
    for durations, most in ((usual, 1000), (heavy_tailed(1.1), 2500)):
        assert len(encode(filled([durations(random, call) for call in range(20_000)]).dump())) < most
