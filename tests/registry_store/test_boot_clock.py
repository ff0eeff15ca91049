"""The two clocks of a process, read as one."""

from __future__ import annotations

import time
from itertools import chain, repeat

import pytest

from dspy_registry.registry_store.boot_clock import wall_and_monotonic

BOOT = 1_700_000_000.0
"""What the wall clock is ahead of the monotonic one, in seconds."""


class Clocks:
    """Time passes between two readings of the clocks: so many seconds each time, and none after the last."""

    def __init__(self, *pauses: float) -> None:
        self.now = 1000.0
        self._pauses = chain(pauses, repeat(0.0))

    def monotonic(self) -> float:
        now, self.now = self.now, self.now + next(self._pauses)
        return now

    def time_ns(self) -> int:
        return round((self.monotonic() + BOOT) * 1e9)


@pytest.mark.parametrize("pauses", [(), (0.03,), (0, 0.03), (0.03, 0.03, 0, 0.01, 0.01, 0), tuple([0.03, 0.03, 0] * 5)])
def test_threads_that_run_between_two_readings_move_nothing(
    monkeypatch: pytest.MonkeyPatch, pauses: tuple[float, ...]
) -> None:
    clocks = Clocks(*pauses)
    monkeypatch.setattr(time, "monotonic", clocks.monotonic)
    monkeypatch.setattr(time, "time_ns", clocks.time_ns)
    wall, monotonic = wall_and_monotonic()
    assert wall / 1e9 - monotonic == pytest.approx(BOOT, abs=1e-5)


def test_the_pair_is_of_now() -> None:
    before = time.time_ns(), time.monotonic()
    wall, monotonic = wall_and_monotonic()
    assert before[0] <= wall <= time.time_ns()
    assert before[1] <= monotonic <= time.monotonic()
