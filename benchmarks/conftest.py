"""`pytest benchmarks/` measures on small registries; `python -m benchmarks` makes the report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.rows import Bench
from benchmarks.suite import QUICK_SIZES, bench_of


@pytest.fixture(scope="session")
def bench() -> Iterator[Bench]:
    """Sizes, folders and data sets, shared by all tests of the session."""
    with bench_of(QUICK_SIZES, quick=False, say=lambda _what, _share: None) as made:
        yield made
