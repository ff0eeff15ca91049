"""How much usage statistics slow readers down while a worker reports all the time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from benchmarks.harness import Contender, chunked, clock_cost, summarise
from benchmarks.processes import rate
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import copied, names_read_and_written
from benchmarks.serving import serving
from benchmarks.stores import OURS
from benchmarks.workers import PATIENCE, Workers
from dspy_registry import Registry, UsageReporter

SIZE: Final = 1_000
PASS: Final = 4_096
CALLS_PER_SECOND: Final = 1_000


class Reporting(Workers):
    """A worker that reports calls of modules at an even rate until it is stopped."""

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        super().__init__(_report, [(path, list(names))])

    def switch(self, *, on: bool) -> int:
        """Start or stop reporting. Returns how many calls were reported so far."""
        return int(self.ask(on)[0])

    def __enter__(self) -> Reporting:
        return self


def _report(path: Path, names: list[str], pipe: Connection) -> None:
    reported, is_on = 0, False
    with UsageReporter(path) as reporter:
        pipe.send("ready")
        try:
            while True:
                if pipe.poll(len(names) / CALLS_PER_SECOND):
                    is_on = pipe.recv()
                    if not is_on:
                        reporter.flush(PATIENCE)
                    pipe.send(reported)
                for name in names if is_on else ():
                    reporter.record(name, 12.5, input_chars=300, tokens_in=5, tokens_out=7, cost_usd=0.01)
                reported += len(names) * is_on
        except EOFError:
            return


@dataclass
class Reads:
    """Reads per second in each window of time, and the nanoseconds of single reads."""

    rates: list[float] = field(default_factory=list)
    singles: list[float] = field(default_factory=list)

    def read(self, registry: Registry, names: list[str], seconds: float) -> None:
        """Read for one window of `seconds`."""
        contender = Contender(OURS, "store.get_module({})", lambda: {"store": registry})
        asked = (names * PASS)[:PASS]
        self.rates.append(rate(contender, chunked(asked, PASS), seconds))
        cost = clock_cost()
        self.singles.extend(max(0.0, single - cost) for single in contender.singles(asked))


def _readers(bench: Bench) -> Iterator[Result]:
    """Windows with and without reports take turns. Each ratio compares two neighbouring windows."""
    title = "cached records dropped by statistics every second"
    rounds, seconds = (1, 0.3) if bench.quick else (9, 2.0)
    tick = bench.ticker(title, rounds)
    names = list(dict.fromkeys(names_read_and_written(bench)[0]))
    path = copied(bench, bench.upto(SIZE), "usage-readers")
    reads = {False: Reads(), True: Reads()}
    dropped = 0
    with serving(path), Registry(path) as registry, Reporting(path, names) as worker:
        kept = {name: registry.get_module(name) for _ in range(4) for name in names}
        revision = registry.revision
        for turn in range(rounds):
            for on in (True, False) if turn % 2 else (False, True):
                worker.switch(on=on)
                if on:
                    _wait_for_more(registry, names[-1])
                reads[on].read(registry, names, seconds)
            dropped += sum(registry.get_module(name) is not kept[name] for name in names)
            tick()
        reported = worker.switch(on=False)
        facts = {"calls": reported, "records": len(names), "revisions": registry.revision - revision}
    yield Result(
        "usage_dropped",
        title,
        "at most",
        0,
        float(dropped),
        unit="records",
        note=f"a worker reports {CALLS_PER_SECOND:,} calls a second of the {len(names)} modules read",
        facts=facts,
    )
    yield _beside(reads[True], reads[False], facts)


def _wait_for_more(registry: Registry, name: str) -> None:
    """Wait until new reports arrive. Raises TimeoutError if none arrive."""
    seen, deadline = registry.usage(name).calls, time.monotonic() + PATIENCE
    while registry.usage(name).calls == seen:
        if time.monotonic() > deadline:
            raise TimeoutError("the daemon received no usage in time")
        time.sleep(0.01)


def _beside(beside: Reads, alone: Reads, facts: dict[str, int]) -> Result:
    ratios = [one / other for one, other in zip(beside.rates, alone.rates, strict=True)]
    both = {"alone": alone, "beside the worker": beside}
    return Result(
        "usage_readers",
        f"one reader beside a worker that reports {CALLS_PER_SECOND:,} calls a second",
        "at least",
        None,
        statistics.median(ratios),
        note="times the reads a second of the reader alone",
        rounds=ratios,
        summaries=[summarise(label, reads.singles) for label, reads in both.items()],
        facts={
            **facts,
            **{f"{label}, reads/s": [round(each) for each in reads.rates] for label, reads in both.items()},
        },
    )


ROWS: Final = (Row("usage_readers", ("usage_dropped", "usage_readers"), 48, _readers),)
