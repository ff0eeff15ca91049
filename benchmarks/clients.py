"""Clients of the writer daemon that register modules as fast as they are answered, alone and in a crowd."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from benchmarks.harness import timed
from benchmarks.workers import Workers, requests
from benchmarks.workloads import CORE_NAMES, modules
from dspy_registry import ModuleInfo, WriterClient

CLIENTS: Final = 64
PROCESSES: Final = 8


class Work(NamedTuple):
    """Registrations acknowledged per second, and the nanoseconds that each took."""

    rate: float
    times: list[int]


def newcomers(owner: str) -> Iterator[ModuleInfo]:
    """Modules without end that nobody else has registered: alike but for their names, so that making them is cheap."""
    (info,) = modules(len(CORE_NAMES) + 1)
    for number in itertools.count():
        yield msgspec.structs.replace(info, name=f"{owner}.Module{number}")


def work(client: WriterClient, infos: Iterator[ModuleInfo], seconds: float) -> Work:
    """What one client gets done that waits for each answer."""
    start = now = time.perf_counter()
    times = []
    while now < start + seconds:
        times.append(timed(partial(client.register_module, next(infos))))
        now = time.perf_counter()
    return Work(len(times) / (now - start), times)


class Crowd(Workers):
    """64 clients with a connection each, in threads of several processes."""

    def __init__(self, path: Path) -> None:
        super().__init__(_clients, [(path, number) for number in range(PROCESSES)])

    def work(self, seconds: float) -> Work:
        """What all of them get done together."""
        parts = [Work(*part) for part in self.ask(seconds)]
        return _together(parts)

    def __enter__(self) -> Crowd:
        return self


def _together(parts: list[Work]) -> Work:
    return Work(sum(part.rate for part in parts), [time for part in parts for time in part.times])


def _clients(path: Path, process: int, pipe: Connection) -> None:
    with ExitStack() as stack:
        each = [
            (stack.enter_context(WriterClient(path)), newcomers(f"process{process}.thread{thread}"))
            for thread in range(CLIENTS // PROCESSES)
        ]
        for client, _ in each:
            client.status()
        pipe.send("ready")
        for seconds in requests(pipe):
            pipe.send(_in_threads(each, seconds))


def _in_threads(each: list[tuple[WriterClient, Iterator[ModuleInfo]]], seconds: float) -> Work:
    parts: list[Work] = []

    def register(client: WriterClient, infos: Iterator[ModuleInfo]) -> None:
        parts.append(work(client, infos, seconds))

    threads = [threading.Thread(target=register, args=pair) for pair in each]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(parts) < len(each):
        raise RuntimeError("a client failed; its error is above")
    return _together(parts)
