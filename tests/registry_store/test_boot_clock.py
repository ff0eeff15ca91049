"""The clocks of a process, read as one."""

from __future__ import annotations

import time
from itertools import chain, repeat
from operator import le

import pytest

from dspy_registry.registry_store import boot_clock
from dspy_registry.registry_store.boot_clock import boot_seconds, clocks

BOOT = 1_700_000_000.0
"""What the wall clock is ahead of the monotonic one, in seconds."""


class Pausing:
    """After each reading of a clock, the next of these pauses passes, in seconds. Then no time passes any more."""

    def __init__(self, *pauses: float) -> None:
        self.now = 1000.0
        self._pauses = chain(pauses, repeat(0.0))

    def monotonic(self) -> float:
        now, self.now = self.now, self.now + next(self._pauses)
        return now

    def time_ns(self) -> int:
        return round((self.monotonic() + BOOT) * 1e9)


@pytest.mark.parametrize(
    "pauses", [(), (0.03,), (0, 0.03), (0, 0, 0.03), (0.03, 0.03, 0, 0, 0.01, 0.01, 0, 0), (0.03, 0, 0, 0) * 5]
)
def test_threads_that_run_between_two_readings_move_nothing(
    monkeypatch: pytest.MonkeyPatch, pauses: tuple[float, ...]
) -> None:
    pausing = Pausing(*pauses)
    monkeypatch.setattr(time, "monotonic", pausing.monotonic)
    monkeypatch.setattr(time, "time_ns", pausing.time_ns)
    monkeypatch.setattr(boot_clock, "boot_seconds", pausing.monotonic)
    wall, monotonic, boot = clocks()
    assert wall / 1e9 - monotonic == pytest.approx(BOOT, abs=1e-5)
    assert boot - monotonic == pytest.approx(0, abs=1e-5)


def test_the_moment_is_now() -> None:
    before = time.time_ns(), time.monotonic(), boot_seconds()
    found = clocks()
    assert all(map(le, before, found))
    assert all(map(le, found, (time.time_ns(), time.monotonic(), boot_seconds())))
