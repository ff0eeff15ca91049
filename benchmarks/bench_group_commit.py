"""What the writer daemon adds and saves: `python -m benchmarks.bench_group_commit [--json]`.

64 clients      durable registrations per second of 64 clients at once, in those of one client that waits for each
                answer; on this disk, and where each sync takes 5 ms
round trip      what a registration through the daemon takes beyond the same by an embedded writer, turn by turn

The daemon is a process of its own; the 64 clients are threads of 8 processes. No figure decides the exit status.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.harness import summarise
from benchmarks.processes import CONTEXT
from benchmarks.rows import Result
from registry_store import ModuleInfo
from writer import RegistryWriter, WriterClient
from writer.failpoints import VARIABLE

CLIENTS: Final = 64
PROCESSES: Final = 8
SYNC: Final = "sleep:5"
_PATIENCE: Final = 120.0  # seconds that a process may take to start or to answer

_SERVE: Final = """
import sys
from writer.daemon import serve
serve(sys.argv[1], ready=lambda daemon: print("ready", flush=True))
"""


@contextmanager
def daemon(path: Path, sync: str = "") -> Iterator[None]:
    """A writer daemon; `sync` is what happens to each of its syncs (see writer/failpoints.py)."""
    environment = {**os.environ, VARIABLE: f"before_commit={sync}" if sync else ""}
    command = [sys.executable, "-c", _SERVE, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the daemon did not start")
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_PATIENCE)


def newcomers(prefix: str) -> Iterator[ModuleInfo]:
    """Modules that nobody has registered."""
    for number in itertools.count():
        yield ModuleInfo(
            name=f"{prefix}.Module{number}",
            category="prediction",
            capabilities=("summarisation", "structured_output"),
            metadata={"owner": prefix},
        )


class Crowd:
    """64 clients, in threads of several processes, that register when told to."""

    def __init__(self, path: Path) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for number in range(PROCESSES):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_clients, args=(path, number, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        self._answers()

    def rate(self, seconds: float) -> float:
        """Registrations acknowledged per second, all together."""
        for pipe in self._pipes:
            pipe.send(seconds)
        return float(sum(self._answers()))

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join(_PATIENCE)

    def _answers(self) -> list[float]:
        if not all(pipe.poll(_PATIENCE) for pipe in self._pipes):
            raise TimeoutError("the benchmark's clients do not answer")
        return [pipe.recv() for pipe in self._pipes]


def _clients(path: Path, process: int, pipe: Connection) -> None:
    with ExitStack() as stack:
        each = [
            (stack.enter_context(WriterClient(path)), newcomers(f"p{process}t{thread}.{time.time_ns()}"))
            for thread in range(CLIENTS // PROCESSES)
        ]
        for client, _ in each:
            client.status()
        pipe.send(0.0)
        try:
            while True:
                pipe.send(_rate(each, pipe.recv()))
        except EOFError:
            return


def _rate(each: list[tuple[WriterClient, Iterator[ModuleInfo]]], seconds: float) -> float:
    rates: list[float] = []

    def register(client: WriterClient, infos: Iterator[ModuleInfo]) -> None:
        rates.append(alone(client, infos, seconds))

    threads = [threading.Thread(target=register, args=pair) for pair in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(rates)


def alone(client: WriterClient, infos: Iterator[ModuleInfo], seconds: float) -> float:
    """Registrations per second of one client that waits for each answer."""
    start = now = time.perf_counter()
    done = 0
    while now < start + seconds:
        client.register_module(next(infos))
        done += 1
        now = time.perf_counter()
    return done / (now - start)


def together(folder: Path, name: str, sync: str, limit: float, rounds: int, seconds: float) -> Iterator[Result]:
    """64 clients and one, round by round."""
    path = folder / name
    one: list[float] = []
    many: list[float] = []
    groups = []
    with daemon(path, sync), WriterClient(path) as client, ExitStack() as stack:
        infos = newcomers("alone")
        crowd = Crowd(path)
        stack.callback(crowd.close)
        alone(client, infos, seconds / 4)
        crowd.rate(seconds / 4)
        for _ in range(rounds):
            one.append(alone(client, infos, seconds))
            before = client.status()
            many.append(crowd.rate(seconds))
            after = client.status()
            groups.append((after.requests - before.requests) / (after.groups - before.groups))
    ratios = [all_of_them / single for all_of_them, single in zip(many, one, strict=True)]
    where = "each sync 5 ms" if sync else "this disk"
    yield Result(
        name,
        f"{CLIENTS} clients, {where}",
        "at least",
        limit,
        statistics.median(ratios),
        note="times the durable registrations per second of one client that waits for each answer",
        rounds=[round(ratio, 2) for ratio in ratios],
        facts={
            "one client, per second": round(statistics.median(one)),
            f"{CLIENTS} clients, per second": round(statistics.median(many)),
            "requests per commit": round(statistics.median(groups), 1),
        },
    )


def round_trip(folder: Path, rounds: int, each: int = 100) -> Iterator[Result]:
    """The same registrations through a daemon and by an embedded writer, turn by turn."""
    times: dict[str, list[list[int]]] = {"embedded": [], "client": []}
    with (
        daemon(folder / "served"),
        RegistryWriter(folder / "embedded") as writer,
        WriterClient(folder / "served") as client,
    ):
        infos = newcomers("alone")
        for turn in range(-1, rounds):
            for taken in times.values():
                taken.append([])
            for info in itertools.islice(infos, each):
                times["embedded"][-1].append(_timed(partial(writer.register_module, info)))
                times["client"][-1].append(_timed(partial(client.register_module, info)))
            if turn < 0:  # warming up
                for taken in times.values():
                    taken.clear()
    medians = {label: [statistics.median(part) for part in taken] for label, taken in times.items()}
    beyond = [(ours - plain) / 1000 for ours, plain in zip(medians["client"], medians["embedded"], strict=True)]
    yield Result(
        "daemon-round-trip",
        "one client's round trip beyond the commit",
        "at most",
        250.0,
        statistics.median(beyond),
        unit="µs",
        note="the difference of the medians of a registration through the daemon and by an embedded writer",
        rounds=[round(value, 1) for value in beyond],
        summaries=[summarise(label, [t for part in taken for t in part]) for label, taken in times.items()],
    )


def _timed(write: Callable[[], object]) -> int:
    start = time.perf_counter_ns()
    write()
    return time.perf_counter_ns() - start


def measure(folder: Path, rounds: int = 7, seconds: float = 1.0) -> Iterator[Result]:
    """Everything, in a folder on the disk that is to be measured."""
    yield from together(folder, "group-commit", "", 3.0, rounds, seconds)
    yield from together(folder, "group-commit-5ms", SYNC, 25.0, rounds, seconds)
    yield from round_trip(folder, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_group_commit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short rounds: shows that everything works")
    parser.add_argument("--json", action="store_true", help="everything measured, one JSON object a line")
    parser.add_argument("--folder", type=Path, help="where to work; on a disk (default: a temporary folder)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        for result in measure(Path(folder), *((2, 0.2) if asked.quick else ())):
            if asked.json:
                print(msgspec.json.encode(result).decode(), flush=True)
            else:
                show(result)


def show(result: Result) -> None:
    """For people."""
    print(f"{result.title:45} {result.figure:8.1f} {result.unit}   {result.target}; rounds {result.rounds}")
    for label, value in result.facts.items():
        print(f"    {label:30} {value}")
    for one in result.summaries:
        shown = ", ".join(f"{name} {getattr(one, name) / 1000:.0f}" for name in ("median", "p90", "p99", "maximum"))
        print(f"    {one.label:30} {shown} µs")


if __name__ == "__main__":
    main()
