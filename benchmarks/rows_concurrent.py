"""Reader processes together, and beside a writer that commits."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.processes import Readers, Writer
from benchmarks.rows import Bench, Result, Row
from benchmarks.stores import registry_opening
from benchmarks.workloads import shuffled

SIZE: Final = 1_000
WORKING_SET: Final = 256
WRITTEN: Final = 128
COMMITS_PER_SECOND: Final = 200.0
SLOW_SYNC_MS: Final = 5.0


def windows(bench: Bench) -> tuple[int, float]:
    """How many rounds there are, and how many seconds each measurement takes."""
    return (3, 0.05) if bench.quick else (11, 0.25)


def names_read_and_written(bench: Bench) -> tuple[list[str], list[str]]:
    """The names to read, and other names to write."""
    names = shuffled(bench.dataset(bench.upto(SIZE)).names)
    if len(names) >= WORKING_SET + WRITTEN:
        return names[:WORKING_SET], names[-WRITTEN:]
    return (names[: len(names) // 2] * WORKING_SET)[:WORKING_SET], names[len(names) // 2 :]


def copied(bench: Bench, size: int, name: str) -> Path:
    """A copy of a data set, for rows that write."""
    target = bench.scratch(name)
    shutil.copytree(bench.dataset(size).path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.sock"))
    return target


def _two_readers(bench: Bench) -> Iterator[Result]:
    title = "two reader processes on two cores"
    rounds, seconds = windows(bench)
    read, _ = names_read_and_written(bench)
    tick = bench.ticker(title, rounds)
    ratios, alone, together = [], [], []
    with Readers(registry_opening(bench.dataset(bench.upto(SIZE)).path), read, 2) as readers:
        for turn in range(rounds):
            one = readers.rates(1, seconds)[0] if turn % 2 else 0.0
            two = sum(readers.rates(2, seconds))
            one = one or readers.rates(1, seconds)[0]
            alone.append(one)
            together.append(two)
            ratios.append(two / one)
            tick()
    yield Result(
        "two_readers",
        title,
        "at least",
        1.8,
        statistics.median(ratios),
        note="times the reads a second of one process",
        rounds=ratios,
        facts={
            "one, reads/s": round(statistics.median(alone)),
            "two, reads/s": round(statistics.median(together)),
        },
    )


def _beside_writer(name: str, sync_ms: float, bench: Bench) -> Iterator[Result]:
    title = f"one reader beside {COMMITS_PER_SECOND:g} commits a second"
    if sync_ms:
        title += f", each sync {sync_ms:g} ms"
    rounds, seconds = windows(bench)
    read, written = names_read_and_written(bench)
    path = copied(bench, bench.upto(SIZE), f"copy-{name}")
    tick = bench.ticker(title, rounds)
    ratios, alone, beside = [], [], []
    committed, committing = 0, 0.0
    with Writer(path, written, COMMITS_PER_SECOND, sync_ms) as writer, Readers(registry_opening(path), read, 1) as one:
        for turn in range(rounds):
            first = one.rates(1, seconds)[0] if turn % 2 else 0.0
            writer.resume()
            before = writer.commits
            during = one.rates(1, seconds)[0]
            committed += writer.commits - before
            committing += seconds
            writer.pause()
            first = first or one.rates(1, seconds)[0]
            alone.append(first)
            beside.append(during)
            ratios.append(during / first)
            tick()
    facts = {
        "alone, reads/s": round(statistics.median(alone)),
        "beside the writer, reads/s": round(statistics.median(beside)),
        "commits/s reached": round(committed / committing, 1),
    }
    yield Result(
        name,
        title,
        "at least",
        0.9,
        statistics.median(ratios),
        note="times the reads a second of the reader alone; the writer updates other modules",
        rounds=ratios,
        facts=facts,
    )


def _row(name: str, sync_ms: float) -> Row:
    return Row(name, (name,), 11, partial(_beside_writer, name, sync_ms))


ROWS: Final = (
    Row("two_readers", ("two_readers",), 9, _two_readers),
    _row("beside_writer", 0.0),
    _row("beside_slow_writer", SLOW_SYNC_MS),
)
