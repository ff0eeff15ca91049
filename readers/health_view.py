"""What a decision takes from health: which circuits are not closed, and until when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class HealthView(NamedTuple):
    """`word` numbers the list. `until` has the deadline of each circuit that is not closed, by name and version.

    Deadlines are on the boot-time clock.
    """

    word: float
    until: Mapping[tuple[str, int], float]


ALL_HEALTHY: Final = HealthView(0.0, {})

NO_WORD: Final = memoryview(bytearray(8)).cast("d", shape=[])
"""Stands for the word of a health file that is not there."""
