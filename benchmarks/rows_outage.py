"""How many calls of eight workers reach a target that fails for a minute, and whether any request fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from benchmarks.rows import Bench, Result, Row
from benchmarks.serving import serving
from benchmarks.workers import Workers
from dspy_registry import ModuleInfo, Registry, RegistryWriter, Router, UsageReporter

WORKERS: Final = 8
PER_SECOND: Final = 100
FAILS: Final = "acme.First"
TARGETS: Final = {FAILS: 100, "acme.Second": 200, "acme.Third": 300}
"""Expected milliseconds. Nobody would call another than the first, if it did not fail."""
SHORTEST_COOLDOWN: Final = 4.0
"""Seconds: 5 less a fifth. What comes earlier comes before the first probe."""


class Callers(Workers):
    """Workers that call a router at an even rate, for some seconds."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(_call, [(path, seconds)] * WORKERS)

    def __enter__(self) -> Callers:
        return self


def _call(path: Path, seconds: float, pipe: Connection) -> None:
    reached: list[float] = []

    def fails() -> None:
        reached.append(time.monotonic())  # the same clock in all processes of a host
        raise ConnectionError("down")

    with Registry(path) as registry, UsageReporter(path) as reporter:
        router = Router(registry, {name: fails if name == FAILS else _answer for name in TARGETS}, reporter)
        pipe.send("ready")
        pipe.recv()
        requests = failed = 0
        ends = due = time.monotonic()
        ends += seconds
        while due < ends:
            time.sleep(max(0.0, due - time.monotonic()))
            requests += 1
            try:
                router.call(basis="declared", deadline_ms=10_000)
            except Exception:
                failed += 1
            due += WORKERS / PER_SECOND
        pipe.send((requests, failed, reached))


def _answer() -> str:
    return "yes"


def _outage(bench: Bench) -> Iterator[Result]:
    seconds = 6.0 if bench.quick else 60.0
    title = f"{WORKERS} workers, {PER_SECOND} requests a second, one of {len(TARGETS)} targets fails for {seconds:g} s"
    tick = bench.ticker(title, 1)
    path: Path = bench.scratch("outage")
    with RegistryWriter(path) as writer:
        writer.register_modules([ModuleInfo(name, estimated_duration=ms) for name, ms in TARGETS.items()])
    with serving(path), Callers(path, seconds) as workers:
        told: list[Any] = workers.ask("go")
        with Registry(path) as registry:
            openings = max((entry.openings for entry in registry.health() if entry.name == FAILS), default=0)
    tick()
    reached = sorted(at for _, _, times in told for at in times)
    before = [at for at in reached if at < reached[0] + SHORTEST_COOLDOWN]
    probes = len(reached) - len(before)
    facts = {"requests": sum(each[0] for each in told), "reached": len(reached), "openings": openings}
    yield Result(
        "outage_reached",
        title,
        "at most",
        20,
        float(len(before)),
        "calls",
        "reach it before its circuit ends",
        facts=facts,
    )
    yield Result(
        "outage_probes",
        f"{title}: probes for each cooldown that ended",
        "at most",
        1,
        probes / max(1, openings - 1),
        "calls",
        "reach it for each cooldown",
        facts=facts,
    )
    failed = float(sum(each[1] for each in told))
    yield Result("outage_failed", f"{title}: requests that fail", "at most", 0, failed, "requests", facts=facts)


ROWS: Final = (Row("outage", ("outage_reached", "outage_probes", "outage_failed"), 75.0, _outage),)
