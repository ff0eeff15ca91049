"""What a limit costs a call, and how soon a waiting call begins when another one ends."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from benchmarks.harness import summarise
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import copied
from benchmarks.workers import Workers, requests
from dspy_registry import Policy, Registry, RegistryWriter

SIZE: Final = 1_000
NAME: Final = "dspy.Predict"
PROCESSES: Final = 8
CALLS: Final = 20_000
HELD: Final = 0.002  # seconds


class Callers(Workers):
    """Processes that call under a limit."""

    def __init__(self, path: Path) -> None:
        super().__init__(_call, [(path,)] * PROCESSES)

    def __enter__(self) -> Callers:
        return self


def _call(path: Path, pipe: Connection) -> None:
    with Registry(path) as registry:
        pipe.send("ready")
        for kind, count in requests(pipe):
            pipe.send(_timed(registry, count) if kind == "timed" else _in_turn(registry, count))


def _timed(registry: Registry, count: int) -> float:
    """Microseconds of processor time for the begin and the end of one call."""
    limit = registry.limit
    start = time.process_time()
    for _ in range(count):
        with limit(NAME):
            pass
    return (time.process_time() - start) / count * 1e6


def _in_turn(registry: Registry, count: int) -> list[tuple[int, int]]:
    """When calls began and ended, in nanoseconds of the monotonic clock, which all processes share."""
    found = []
    for _ in range(count):
        with registry.limit(NAME):
            began = time.monotonic_ns()
            time.sleep(HELD)
            ended = time.monotonic_ns()
        found.append((began, ended))
    return found


def _begin_and_end(bench: Bench) -> Iterator[Result]:
    title = f"begin and end of a limited call, {PROCESSES} processes, limit not reached"
    rounds = 2 if bench.quick else 9
    tick = bench.ticker(title, rounds)
    path = _with_limit(bench, "limit-call", 2 * PROCESSES)
    with Callers(path) as callers:
        callers.ask(("timed", 100))
        taken = []
        for _ in range(rounds):
            taken.append(statistics.median(callers.ask(("timed", CALLS // (10 if bench.quick else 1)))))
            tick()
    yield Result(
        "limit_call", title, "at most", 6, statistics.median(taken), unit="µs", note="of processor time", rounds=taken
    )


def _wake(bench: Bench) -> Iterator[Result]:
    title = f"a waiter woken when a call ends, {PROCESSES} waiting"
    path = _with_limit(bench, "limit-wake", 1)
    with Callers(path) as callers:
        callers.ask(("timed", 10))
        told = callers.ask(("in turn", 5 if bench.quick else 100))
    calls = sorted((began, ended) for each in told for began, ended in each)
    gaps = [max(0, later[0] - earlier[1]) for earlier, later in pairwise(calls)]
    found = summarise("from the end to the next begin", gaps)
    yield Result("limit_wake", title, "at most", 1, found.median / 1e6, unit="ms", note="the median", summaries=[found])


def _with_limit(bench: Bench, name: str, calls: int) -> Path:
    path = copied(bench, bench.upto(SIZE), name)
    with RegistryWriter(path) as writer:
        writer.set_policy(NAME, Policy(max_concurrency=calls))
    return path


ROWS: Final = (
    Row("limit_call", ("limit_call",), 15, _begin_and_end),
    Row("limit_wake", ("limit_wake",), 8, _wake),
)
