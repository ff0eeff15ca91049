"""The limit and the estimate for the next call, from the few numbers that are stored."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store.advice import (
    Standing,
    auto_timeout,
    default_ceiling,
    estimate,
    observed_timeout,
    steady_timeout,
)

MILLISECONDS = st.floats(0, 1e6)
STANDINGS = st.builds(Standing, st.integers(0, 100), *[MILLISECONDS] * 5)
BUSY = Standing(completed=20, p50=100, p90=150, p99=200, longest=150)


def test_the_default_ceiling() -> None:
    assert default_ceiling(1000) == 120_000
    assert default_ceiling(60_000) == 600_000


def test_until_20_calls_completed_what_is_declared_counts() -> None:
    few = Standing(completed=19, p50=100, p90=150, p99=200, longest=150)
    assert (steady_timeout(few, 1000), estimate(few, 800)) == (1000, 800)
    assert (steady_timeout(BUSY, 1000), estimate(BUSY, 800)) == (240, 100)


def test_few_calls_that_are_slower_than_declared_count_at_once() -> None:
    assert steady_timeout(Standing(completed=1, longest=5000), 1000) == 7500


def test_the_longest_call_counts_where_it_is_longer_than_the_quantile_says() -> None:
    assert steady_timeout(Standing(20, 100, 150, 200, longest=400), 1000) == 600


def test_the_backoff_counts_until_it_is_cleared() -> None:
    assert observed_timeout(Standing(20, 100, 150, 200, 150, backoff=4000), 1000, 120_000) == 4000


def test_auto_is_never_below_what_is_declared() -> None:
    assert observed_timeout(BUSY, 1000, 120_000) == 240
    assert auto_timeout(BUSY, 1000, 800, 120_000) == 1000
    assert auto_timeout(Standing(), 900, 1000, 120_000) == 1200, "nor below 1.2 times what is declared for the size"


@given(STANDINGS, MILLISECONDS, MILLISECONDS, MILLISECONDS)
def test_no_limit_is_above_the_ceiling_and_auto_is_never_the_shorter(
    standing: Standing, declared: float, duration: float, ceiling: float
) -> None:
    observed = observed_timeout(standing, declared, ceiling)
    auto = auto_timeout(standing, declared, duration, ceiling)
    assert observed <= auto <= ceiling
    assert auto == ceiling or auto >= max(declared, 1.2 * estimate(standing, duration))


@given(STANDINGS, MILLISECONDS, MILLISECONDS)
def test_what_a_process_saw_itself_never_shortens_a_limit(standing: Standing, longest: float, backoff: float) -> None:
    together = standing.with_own(longest, backoff)
    assert observed_timeout(together, 1000, 1e6) >= max(observed_timeout(standing, 1000, 1e6), backoff)
    assert standing.with_own(0.0, 0.0) is standing


@pytest.mark.parametrize("part", ["advice", "statistics", "own_calls", "classify", "retry_after"])
def test_readers_and_reporters_load_no_heavy_library_for_it(part: str) -> None:
    code = f"import dspy_registry.registry_store.{part}, json, sys; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    assert not {"asyncio", "ddsketch", "dspy", "email.utils", "numpy"}.intersection(loaded)
