"""`make test` runs some of many like cases. `make test-full` runs all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def each(step: int, values: Iterable[Any]) -> list[Any]:
    """The values as parameters of a test. The first and every `step`th after it stay; the others are marked `full`."""
    return [value if at % step == 0 else pytest.param(value, marks=pytest.mark.full) for at, value in enumerate(values)]
