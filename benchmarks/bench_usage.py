"""What usage statistics cost: `python -m benchmarks.bench_usage`. No figure decides the exit status.

record       the time of `UsageReporter.record`, in that of a dict update under a lock; also when calls come so
             fast that the reporter only counts them
readers      `Registry.get_module` from the cache while a worker's statistics are merged all the time, in that of
             the same with nobody reporting; and how many cached records that cost
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
import timeit
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

import msgspec

from readers import Registry
from writer.daemon import serve
from writer.usage import QUEUE_LENGTH, UsageReporter

TARGET: Final = 3.0
CALLS_PER_SECOND: Final = 1_000
_NUMBER: Final = 5_000

BASELINE: Final = "with lock:\n    counts['dspy.Predict'] = counts.get('dspy.Predict', 0) + 1"
SHORT: Final = "reporter.record('dspy.Predict', 12.5)"
FULL: Final = "reporter.record('dspy.Predict', 12.5, True, input_chars=300, tokens_in=5, tokens_out=7, cost_usd=0.01)"


class Figure(msgspec.Struct, frozen=True):
    """One line of the result. `rounds` are the values whose median is `value`."""

    name: str
    value: float
    note: str
    rounds: tuple[float, ...] = ()


def figure(name: str, rounds: list[float], note: str) -> Figure:
    return Figure(name, round(statistics.median(rounds), 3), note, tuple(round(each, 3) for each in rounds))


# What the request path pays


def record(rounds: int) -> Iterator[Figure]:
    """Baseline and `record` take turns; a ratio is of one turn."""
    lock, counts = threading.Lock(), dict[str, int]()
    with tempfile.TemporaryDirectory() as folder, UsageReporter(folder) as reporter:
        names = {"lock": lock, "counts": counts, "reporter": reporter}
        reporter.record("dspy.Predict", 1.0)
        ratios: dict[str, list[float]] = {SHORT: [], FULL: []}
        for statement in (SHORT, FULL):
            for _ in range(rounds):
                reporter.flush(10)  # what waits is aggregated before, not while the clock runs
                base, taken = (timeit.timeit(each, globals=names, number=_NUMBER) for each in (BASELINE, statement))
                ratios[statement].append(taken / base)
        flood = []
        for _ in range(rounds):
            base = timeit.timeit(BASELINE, globals=names, number=4 * QUEUE_LENGTH)
            flood.append(timeit.timeit(FULL, globals=names, number=4 * QUEUE_LENGTH) / base)
    yield figure("record", ratios[SHORT], f"times a dict update under a lock; at most {TARGET}")
    yield figure("record, every argument", ratios[FULL], f"times a dict update under a lock; at most {TARGET}")
    yield figure("record, in a flood", flood, f"the same, its thread at work beside it; at most {TARGET}")


# What readers pay


def readers(seconds: float, rounds: int) -> Iterator[Figure]:
    """Windows with and without reports take turns; a ratio is of two windows beside each other."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, daemon(context, folder), Registry(folder) as registry:
        reporting, ended = context.Event(), context.Event()
        worker = context.Process(target=report, args=(folder, reporting, ended), daemon=True)
        worker.start()
        names = list(registry)
        kept = {name: registry.get_module(name) for _ in range(4) for name in names}
        revision, ratios, dropped, before = registry.revision, list[float](), 0, 0
        for _ in range(rounds):
            reporting.clear()
            alone = reads(registry, names, seconds)
            reporting.set()
            wait_for_more(registry, before)
            ratios.append(reads(registry, names, seconds) / alone)
            before = registry.usage(names[0]).calls
            dropped += sum(registry.get_module(name) is not kept[name] for name in names)
        ended.set()
        worker.join(30)
        note = f"reads a second beside {CALLS_PER_SECOND} reported calls a second, times those without"
        yield figure("cached reads", ratios, note)
        yield Figure("cached records dropped", dropped, f"by {before} calls of each of {len(names)} modules; none")
        yield Figure("revisions made", registry.revision - revision, "by all of that; none")


def reads(registry: Registry, names: list[str], seconds: float) -> float:
    """Reads a second."""
    count, began = 0, time.perf_counter()
    get_module = registry.get_module
    while (taken := time.perf_counter() - began) < seconds:
        for _ in range(200):
            for name in names:
                get_module(name)
        count += 200 * len(names)
    return count / taken


def wait_for_more(registry: Registry, calls: int) -> None:
    """Until reports arrive again. Raises TimeoutError when they do not."""
    deadline = time.monotonic() + 60
    while registry.usage("dspy.Predict").calls <= calls:
        if time.monotonic() > deadline:
            raise TimeoutError("no usage arrived")
        time.sleep(0.01)


def report(folder: str, reporting: Event, ended: Event) -> None:
    """A worker: reports calls of every module, evenly, while it is told to."""
    with Registry(folder) as registry:
        names = list(registry)
    with UsageReporter(folder) as reporter:
        while not ended.wait(len(names) * 10 / CALLS_PER_SECOND):
            for name in names * 10 if reporting.is_set() else ():
                reporter.record(name, 12.5, input_chars=300, tokens_in=5, tokens_out=7, cost_usd=0.01)


@contextmanager
def daemon(context: multiprocessing.context.SpawnContext, folder: str) -> Iterator[None]:
    """A daemon of its own process."""
    process = context.Process(target=serve, args=(folder,), daemon=True)
    process.start()
    socket = Path(folder) / "writer.sock"
    deadline = time.monotonic() + 60
    while not socket.exists():
        if time.monotonic() > deadline or not process.is_alive():
            raise TimeoutError("the daemon did not start")
        time.sleep(0.01)
    try:
        yield
    finally:
        process.terminate()
        process.join(30)


def main(arguments: list[str] | None = None) -> int:
    """0 when everything could be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_usage", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few and short rounds: shows that everything works")
    parser.add_argument("--json", action="store_true", help="print JSON, rounds included")
    asked = parser.parse_args(arguments)
    rounds, seconds = (3, 0.5) if asked.quick else (15, 3.0)
    figures = [*record(rounds), *readers(seconds, rounds)]
    if asked.json:
        print(msgspec.json.format(msgspec.json.encode(figures)).decode())
        return 0
    for each in figures:
        print(f"{each.name:<24} {each.value:>8g}  {each.note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
