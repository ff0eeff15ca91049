"""Clients that register modules through the daemon, one alone or 64 at once. Each waits for every answer."""

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
    """Registrations acknowledged per second, and how many nanoseconds each took."""

    rate: float
    times: list[int]


def newcomers(owner: str) -> Iterator[ModuleInfo]:
    """Endless new modules, with names that no other owner uses. Only the names differ, so making them is cheap."""
    (info,) = modules(len(CORE_NAMES) + 1)
    for number in itertools.count():
        yield msgspec.structs.replace(info, name=f"{owner}.Module{number}")


def work(client: WriterClient, infos: Iterator[ModuleInfo], seconds: float) -> Work:
    """The work of one client in `seconds`. The client waits for each answer."""
    start = now = time.perf_counter()
    times = []
    while now < start + seconds:
        times.append(timed(partial(client.register_module, next(infos))))
        now = time.perf_counter()
    return Work(len(times) / (now - start), times)


class Crowd(Workers):
    """64 clients in threads of several processes. Each client has its own connection."""

    def __init__(self, path: Path) -> None:
        super().__init__(_clients, [(path, number) for number in range(PROCESSES)])

    def work(self, seconds: float) -> Work:
        """The work of all clients together in `seconds`."""
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
