"""A daemon whose rollouts go by a clock that tests move, and workers' calls of two versions."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dspy_registry import Registry, RegistryWriter, UsageReporter, WriterClient
from dspy_registry.registry_store.rollout import Plan
from dspy_registry.writer.daemon import lifecycle
from dspy_registry.writer.daemon.rollouts import keep_rollouts
from tests.support.daemon_process import module, serve
from tests.support.processes import requests, say

NAME = "acme.Qa"
PLAN = Plan((10.0, 50.0, 100.0), 600.0, 0.02, 0.2)
_ROUNDS = 60


def serve_by_clock(path: str, clock: str) -> None:
    """A daemon that looks very often, and whose time is in a file."""
    told = partial(keep_rollouts, clock=lambda: float(Path(clock).read_text(encoding="ascii")), every=0.01)
    lifecycle.keep_rollouts = told  # type: ignore[assignment]
    serve(path)


def set_clock(clock: Path, seconds: float) -> None:
    """The daemon's time. It is replaced as a whole: the daemon reads it at any moment."""
    replaced = clock.with_suffix(".new")
    replaced.write_text(str(seconds), encoding="ascii")
    replaced.replace(clock)


def two_versions(path: Path, clock: Path) -> None:
    """A module with two versions, its label at the first."""
    clock.write_text(str(time.time()), encoding="ascii")  # a request goes by the host's clock
    with RegistryWriter(path) as writer:
        for milliseconds in (100, 200, 300):
            writer.register_module(module(NAME, estimated_duration=milliseconds))
        writer.set_label(NAME, "live", 1)


def facts(client: WriterClient) -> dict[str, Any]:
    """The rollout in the status."""
    (found,) = client.status().sections["rollouts"]["rollouts"]
    return dict(found)


class Traffic:
    """Calls of both versions until something is so, with `seconds` of simulated time between them.

    `old` and `new` say how many of ten calls fail, and how long each takes in milliseconds.
    """

    def __init__(
        self, path: Path, clock: Path, old: tuple[int, float], new: tuple[int, float], seconds: float = 600.0
    ) -> None:
        self._path, self._clock, self._kinds, self._seconds = path, clock, {1: old, 2: new}, seconds

    def until(self, condition: Callable[[], bool]) -> None:
        with UsageReporter(self._path, interval=3600.0) as reporter:
            for _ in range(_ROUNDS):
                if condition():
                    return
                for version, (failing, duration) in self._kinds.items():
                    for call in range(60):
                        fails = call % 10 < failing
                        reporter.record(NAME, duration, ok=not fails, version=version)
                assert reporter.flush()
                set_clock(self._clock, float(self._clock.read_text(encoding="ascii")) + self._seconds)
        raise AssertionError("it did not come about")


CALLS = 200
"""Calls of a worker in one round."""


def work(path: str, failing_old: int, failing_new: int) -> None:
    """A worker: it asks by key which version to call, and reports. `failing_…` of ten calls of a version fail.

    Each request is the number of a round; it says how many calls of each version it made.
    """
    failing = {1: failing_old, 2: failing_new}
    made: Counter[int] = Counter()
    with Registry(path) as registry, UsageReporter(path, interval=3600.0) as reporter:
        for round_ in requests():
            before = Counter(made)
            for call in range(CALLS):
                version = registry.resolve(f"{NAME}@live", key=f"user-{round_}-{call}").version
                reporter.record(NAME, 100.0, ok=made[version] % 10 >= failing[version], version=version)
                made[version] += 1
            assert reporter.flush()
            say([made[1] - before[1], made[2] - before[2]])
