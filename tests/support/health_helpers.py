"""Calls that fail, and waiting until the host knows. No test decides by time: a wait ends when something is so."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from dspy_registry import HealthEntry, Registry, UsageReporter
from tests.support.daemon_process import PATIENT

NAME = "dspy.Predict"
ENOUGH = 5
"""Failures that open a circuit by the default rules."""


def until(condition: Callable[[], object], seconds: float = PATIENT) -> None:
    """Wait until it holds, patiently."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.002)


def fail(reporter: UsageReporter, times: int = ENOUGH, name: str = NAME, version: int = 0) -> None:
    """Calls that just failed."""
    for _ in range(times):
        reporter.record(name, 5.0, ok=False, error="unavailable", version=version, began=time.monotonic())


def unhealthy(path: Path) -> list[HealthEntry]:
    """What a process that opens the registry now is told."""
    with Registry(path) as registry:
        return registry.health()


def states(path: Path) -> dict[tuple[str, int], str]:
    """The state of each module version that is not healthy."""
    return {(entry.name, entry.version): entry.state for entry in unhealthy(path)}
