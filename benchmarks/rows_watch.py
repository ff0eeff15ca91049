"""How soon a watcher in another process is told, what it costs while nothing changes, and what many cost a commit."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

from benchmarks.harness import percentile, summarise, timed
from benchmarks.rows import Bench, Result, Row
from benchmarks.watchers import WATCHED, OfRegistry, Source, Subscribe, crowd, listen, watch_registry
from benchmarks.workers import Workers

PAUSE: Final = 0.02
CROWD: Final = (50, 10)
"""Processes, and the watchers of each."""
ALONE, WITH = "no watcher", "500 watchers"


def _woken(bench: Bench) -> Iterator[Result]:
    title = "from the acknowledgement to a blocked watcher in another process"
    changes = 20 if bench.quick else 500
    found: dict[str, list[float]] = {}
    notes: dict[str, str] = {}
    tick = bench.ticker(title, len(WATCHED))
    for kind, subscribe in WATCHED:
        source = kind()
        missing = source.missing()
        if missing is None:
            found[source.label] = _latencies(source, subscribe, changes, bench)
        else:
            notes[source.label] = f"not measured: {missing}"
        tick()
    ours = sorted(found[OfRegistry.label])
    shared = {
        "unit": "ms",
        "summaries": [summarise(label, [1e6 * each for each in times]) for label, times in found.items()],
        "facts": {
            **{f"{label}, median ms": round(statistics.median(times), 3) for label, times in found.items()},
            **notes,
        },
    }
    yield Result("watch_median", title, "at most", 1, statistics.median(ours), **shared)  # type: ignore[arg-type]
    yield Result("watch_p99", f"{title}, 99th percentile", "at most", 10, percentile(ours, 0.99), unit="ms")


def _latencies(source: Source, subscribe: Subscribe, changes: int, bench: Bench) -> list[float]:
    """Milliseconds from each acknowledgement until the watcher had it. 0: it had it before."""
    with ExitStack() as stack:
        where = source.start(bench.scratch(f"watch-{source.label.split()[0].lower()}"))
        stack.callback(source.stop)
        watcher = stack.enter_context(Workers(listen, [(subscribe, where)]))
        acknowledged = {}
        for _ in range(changes):
            number = source.publish()
            acknowledged[number] = time.monotonic_ns()
            time.sleep(PAUSE)
        (told,) = watcher.ask(("times", number))
    missed = [number for number in acknowledged if number not in told]
    if missed:
        raise RuntimeError(f"{source.label}: the watcher was not told of {missed[:3]}")
    return [max(0, told[number] - at) / 1e6 for number, at in acknowledged.items()]


def _idle(bench: Bench) -> Iterator[Result]:
    title = "an idle watcher"
    seconds = 1 if bench.quick else 60
    source = OfRegistry()
    where = source.start(bench.scratch("watch-idle"))
    try:
        with Workers(listen, [(watch_registry, where)]) as watcher:
            watcher.ask(("idle", 1))
            (share,) = watcher.ask(("idle", seconds))
    finally:
        source.stop()
    yield Result("watch_idle", title, "at most", 0.05, 100 * share, unit="% of a core", facts={"seconds": seconds})


def _crowded(bench: Bench) -> Iterator[Result]:
    title = "a commit beside 500 watchers in 50 processes"
    processes, each = (2, 5) if bench.quick else CROWD
    rounds, commits = (2, 5) if bench.quick else (6, 50)
    times: dict[str, list[float]] = {ALONE: [], WITH: []}
    source = OfRegistry()
    path = source.start(bench.scratch("watch-crowd"))
    tick = bench.ticker(title, rounds)
    try:
        with Workers(crowd, [(path, each)] * processes) as watchers:
            for turn in range(rounds):
                for on in (True, False) if turn % 2 else (False, True):
                    watchers.ask(on)
                    taken = []
                    for _ in range(commits):
                        taken.append(timed(source.publish))
                        time.sleep(0.1)
                    times[WITH if on else ALONE].append(statistics.median(taken) / 1e6)
                    watchers.ask(False)
                tick()
    finally:
        source.stop()
    ratios = [one / other for one, other in zip(times[WITH], times[ALONE], strict=True)]
    yield Result(
        "watch_crowd",
        title,
        "at most",
        1.05,
        statistics.median(ratios),
        note="times a commit without watchers; ten commits a second",
        rounds=ratios,
        facts={f"{label}, ms": [round(value, 3) for value in values] for label, values in times.items()},
    )


ROWS: Final = (
    Row("watch", ("watch_median", "watch_p99"), 40, _woken),
    Row("watch_idle", ("watch_idle",), 63, _idle),
    Row("watch_crowd", ("watch_crowd",), 90, _crowded),
)
