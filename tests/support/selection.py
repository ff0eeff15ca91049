"""Which of many like cases `make test` runs; `make test-full` runs them all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def each(step: int, values: Iterable[Any]) -> list[Any]:
    """The values as parameters, of which each `step`th is quick and the others are `full`."""
    return [value if at % step == 0 else pytest.param(value, marks=pytest.mark.full) for at, value in enumerate(values)]
