"""Reader processes that start together at a barrier, and a writer process that commits at a given rate."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any
from unittest import mock

from benchmarks.harness import UNROLLED, Contender, chunked
from benchmarks.stores.peer import Opening
from benchmarks.workers import CONTEXT, PATIENCE, Workers, requests
from dspy_registry.writer.failpoints import VARIABLE


class Readers(Workers):
    """`count` processes that read the same names from the same store. `rates` lets the first of them read together."""

    def __init__(self, opening: Opening, names: Sequence[str], count: int) -> None:
        barriers = {parties: CONTEXT.Barrier(parties) for parties in range(1, count + 1)}
        super().__init__(_read, [(opening, list(names), barriers)] * count)

    def rates(self, count: int, seconds: float) -> list[float]:
        """Reads per second of each of the first `count` processes. They start together and read for `seconds`."""
        return [float(rate) for rate in self.ask(("rate", count, seconds), count)]

    def __enter__(self) -> Readers:
        return self


def _read(opening: Opening, names: list[str], barriers: dict[int, Any], pipe: Connection) -> None:
    store = opening.open()
    contender = Contender(opening.label, opening.statement, lambda: {"store": store})
    chunks = chunked(names, 1024)
    contender.batches(chunks, 2)
    pipe.send("ready")
    for request in requests(pipe):
        match request:
            case ("rate", count, seconds):
                barriers[count].wait(PATIENCE)
                pipe.send(rate(contender, chunks, seconds))
    store.close()


def rate(contender: Contender, chunks: Sequence[Sequence[tuple[Any, ...]]], seconds: float) -> float:
    """Operations per second. It makes whole passes over the chunks until `seconds` are over."""
    per_pass = sum(map(len, chunks)) * UNROLLED
    start = time.perf_counter()
    end, done = start + seconds, 0
    now = start
    while now < end:
        contender.batches(chunks, 1)
        done += per_pass
        now = time.perf_counter()
    return done / (now - start)


class Writer:
    """A process that updates modules: `per_second` commits a second, of one module each, after `resume` until `pause`.

    For `sync_ms` see `slow_sync`. Every `newcomer_every`-th commit (0: none) registers a new module instead, or
    removes the one registered last.
    """

    def __init__(
        self, path: Path, names: Sequence[str], per_second: float, sync_ms: float = 0.0, newcomer_every: int = 0
    ) -> None:
        self._go, self._stop = CONTEXT.Event(), CONTEXT.Event()
        self._idle = CONTEXT.Event()
        self._commits = CONTEXT.Value("Q", 0, lock=False)
        self.per_second = per_second
        signals = (self._go, self._stop, self._idle, self._commits)
        self._process = CONTEXT.Process(
            target=_write, args=(path, list(names), 1 / per_second, newcomer_every, signals), daemon=True
        )
        with mock.patch.dict(os.environ, slow_sync(sync_ms)):
            self._process.start()
        self._until(self._idle.is_set)

    @property
    def commits(self) -> int:
        """How many commits it has made."""
        return int(self._commits.value)

    def resume(self) -> None:
        """Start committing. Returns when commits are being made."""
        before = self.commits
        self._idle.clear()
        self._go.set()
        self._until(lambda: self.commits >= before + 2)

    def pause(self) -> None:
        """Stop committing. Returns when no commit is made any longer."""
        self._go.clear()
        self._until(self._idle.is_set)

    def _until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            if time.monotonic() > deadline or not self._process.is_alive():
                raise RuntimeError("the benchmark's writer process has died or does not answer")
            time.sleep(0.001)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._go.set()
        self._process.join(PATIENCE)


def slow_sync(milliseconds: float) -> dict[str, str]:
    """Environment variables that make each commit of a process this much slower, as on a slower disk."""
    return {VARIABLE: f"before_commit=sleep:{milliseconds:g}" if milliseconds else ""}


def _write(
    path: Path, names: list[str], interval: float, newcomer_every: int, signals: tuple[Any, Any, Any, Any]
) -> None:
    from dspy_registry import RegistryWriter

    go, stop, idle, commits = signals
    with RegistryWriter(path) as writer:
        update = _updates(path, names, newcomer_every, writer)
        while not stop.is_set():
            idle.set()
            go.wait()
            due = time.monotonic()
            while go.is_set() and not stop.is_set():
                update()
                commits.value += 1
                due = max(due + interval, time.monotonic() - 10 * interval)
                time.sleep(max(0.0, due - time.monotonic()))


def _updates(path: Path, names: list[str], newcomer_every: int, writer: Any) -> Callable[[], None]:
    """A function that makes one commit. It gives the next module another duration, or adds or removes a newcomer."""
    import msgspec

    from dspy_registry import Registry

    with Registry(path) as registry:
        infos = [registry[name] for name in names]
    turn = 0
    newcomer = ""

    def update() -> None:
        nonlocal turn, newcomer
        turn += 1
        info = infos[turn % len(infos)]
        if not newcomer_every or turn % newcomer_every:
            writer.register_module(msgspec.structs.replace(info, estimated_duration=1_000 + turn))
        elif newcomer:
            writer.unregister_module(newcomer)
            newcomer = ""
        else:
            newcomer = f"{info.name}Newcomer"
            writer.register_module(msgspec.structs.replace(info, name=newcomer))

    return update
