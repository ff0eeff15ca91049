"""What the first read after a commit costs. A process follows each commit once, with its next read.

The program decides how many reads share that cost, so a percentile of all reads shows the program. This row takes only
the first read after each commit. It counts processor time, so what the reader waits for is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.harness import summarise
from benchmarks.rows import Bench, Result, Row
from benchmarks.rows_concurrent import copied, names_read_and_written
from benchmarks.stores import OURS, SQLite
from benchmarks.stores.baselines import PlainDict
from benchmarks.stores.files import connect
from benchmarks.workers import Workers, requests
from dspy_registry import Registry, RegistryWriter
from dspy_registry.registry_store.codec import encode

NAME: Final = "first_read_after_commit"
SIZE: Final = 1_000
PLAIN: Final = "plain class with a dict"
LIMIT: Final = 1.5
"""SQLite does the same: it sees that another process has committed, and reads again what that may have changed."""
READ: Final = 64
AGAIN: Final = ", read again"


class Committing(Workers):
    """A process that changes a module in the registry and in SQLite, each time it is asked."""

    def __init__(self, path: Path, database: Path, names: list[str]) -> None:
        super().__init__(_commit, [(path, database, names)])

    def __enter__(self) -> Committing:
        return self


def _commit(path: Path, database: Path, names: list[str], pipe: Connection) -> None:
    with Registry(path) as registry:
        infos = [registry[name] for name in names]
    with RegistryWriter(path) as writer, closing(connect(database)) as connection:
        pipe.send("ready")
        for number in requests(pipe):
            info = msgspec.structs.replace(infos[number % len(infos)], estimated_duration=1_000 + number)
            writer.register_module(info)
            connection.execute("UPDATE module SET record = ? WHERE name = ?", (encode(info), info.name))
            pipe.send(number)


def _first_reads(bench: Bench) -> Iterator[Result]:
    title = "the first read after a commit of another module"
    commits = 50 if bench.quick else 3_000
    tick = bench.ticker(title, commits)
    read, written = names_read_and_written(bench)
    path, folder, peer = copied(bench, bench.upto(SIZE), NAME), bench.scratch(f"{NAME}-sqlite"), SQLite()
    with ExitStack() as stack:
        registry = stack.enter_context(Registry(path))
        peer.start(folder, [(info.name, encode(info)) for info in registry.values()])
        opening = peer.opening()
        stores: dict[str, Any] = {
            OURS: registry.get_module,
            opening.label: stack.enter_context(closing(opening.open())).get,
            PLAIN: PlainDict({name: registry[name] for name in read}).get,
        }
        for name in read[:READ] * 4:  # until all are kept
            registry.get_module(name)
        writer = stack.enter_context(Committing(path, folder / "modules.sqlite", list(dict.fromkeys(written))))
        found: dict[str, list[float]] = {f"{label}{which}": [] for label in stores for which in ("", AGAIN)}
        for number in range(commits):
            writer.ask(number)
            name = read[number % READ]
            for label, get in stores.items() if number % 2 else reversed(stores.items()):
                found[label].append(_spent(get, name))
                found[f"{label}{AGAIN}"].append(_spent(get, name))
            tick()
    yield _result(title, opening.label, found)


def _result(title: str, sqlite: str, found: dict[str, list[float]]) -> Result:
    cost = statistics.median(_spent(_nothing, "") for _ in range(10_000))
    medians = {label: max(1.0, statistics.median(times) - cost) for label, times in found.items()}
    return Result(
        NAME,
        title,
        "at most",
        LIMIT,
        medians[OURS] / medians[sqlite],
        note=f"times SQLite's after a commit of the same; medians of processor time, {SIZE:,} modules, nothing dropped",
        summaries=[summarise(label, [max(0.0, each - cost) for each in times]) for label, times in found.items()],
        facts={
            **{f"{label}, ns": round(median) for label, median in medians.items()},
            f"times a {PLAIN}": round(medians[OURS] / medians[PLAIN], 1),
        },
    )


def _spent(get: Callable[[str], object], name: str) -> int:
    """Nanoseconds of processor time of one read, the cost of reading the clock included."""
    start = time.thread_time_ns()
    get(name)
    return time.thread_time_ns() - start


def _nothing(_: str) -> None:
    return None


ROWS: Final = (Row(NAME, (NAME,), 8, _first_reads),)
