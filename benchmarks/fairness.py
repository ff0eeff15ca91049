"""What one client waits for a registration while others misbehave: `python -m benchmarks.fairness`.

It reports the 99th percentile of each case as a multiple of the quiet one. Half of the quiet registrations come before
the case and half after it, so that both see the same machine, and both are as many. It decides nothing: the tests in
tests/writer/daemon assert the mechanisms. It ends by itself, whatever the daemon does.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event, Semaphore
from pathlib import Path
from typing import Final

from benchmarks import misbehaviour
from benchmarks.serving import serving
from dspy_registry import ModuleInfo, RegistryError, WriterClient

REGISTRATIONS: Final = 1000
"""Of each case: ten of them take longer than the 99th percentile."""
SECONDS: Final = 30.0
"""The longest time for them. What was not registered by then is not counted."""
CLIENTS: Final = 8
PATIENCE: Final = 30.0
"""Seconds that a process has to begin, and to end when it was told to. Then it is killed."""

CASES: Final = (
    misbehaviour.refused_records,
    misbehaviour.costly_records,
    misbehaviour.usage_batches,
    misbehaviour.bad_frames,
    misbehaviour.idle_connections,
)


@contextmanager
def misbehaving(path: Path, what: misbehaviour.Misbehaviour, clients: int = CLIENTS) -> Iterator[None]:
    """Start this many processes that misbehave, and wait until all have begun. Raises RuntimeError if one does not."""
    processes = multiprocessing.get_context("spawn")
    end, begun = processes.Event(), processes.Semaphore(0)
    children = [processes.Process(target=_run, args=(what, path, begun, end), daemon=True) for _ in range(clients)]
    for child in children:
        child.start()
    try:
        until = time.monotonic() + PATIENCE
        for _ in children:
            if not begun.acquire(timeout=max(until - time.monotonic(), 0)):
                raise RuntimeError(f"not all of {clients} clients with {what.__name__} began within {PATIENCE:g} s")
        yield
    finally:
        end.set()
        until = time.monotonic() + PATIENCE
        for child in children:
            child.join(max(until - time.monotonic(), 0))
            if child.is_alive():
                child.kill()
                child.join()


def _run(what: misbehaviour.Misbehaviour, path: Path, begun: Semaphore, end: Event) -> None:
    """Misbehave until told to end, or until the daemon is away."""
    steps = what(path, CLIENTS)
    try:
        next(steps)
        begun.release()
        while not end.is_set():
            next(steps)
    except (OSError, StopIteration):
        pass
    finally:
        steps.close()


def registrations(path: Path, count: int = REGISTRATIONS, seconds: float = SECONDS) -> list[float]:
    """How many milliseconds each registration by one client takes, at least one. Raises RegistryError."""
    times: list[float] = []
    with WriterClient(path, timeout=PATIENCE) as client:
        until = time.monotonic() + seconds
        while not times or (len(times) < count and time.monotonic() < until):
            began = time.perf_counter()
            client.register_module(ModuleInfo("quiet.Module", metadata={"n": len(times), "at": began}))
            times.append((time.perf_counter() - began) * 1000)
            time.sleep(0.002)
    return times


def percentiles(times: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile."""
    ordered = sorted(times)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.99)]


def measure(
    write: Callable[[str], object] = sys.stdout.write, count: int = REGISTRATIONS, clients: int = CLIENTS
) -> None:
    """Tell a line for each case."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        path = Path(name) / "registry"
        with serving(path):
            before = registrations(path, count // 2)
            for what in CASES:
                try:
                    with misbehaving(path, what, clients):
                        beside = registrations(path, count)
                    after = registrations(path, count // 2)
                except (RegistryError, RuntimeError) as error:
                    write(f"{what.__name__:<20} not measured: {error}\n")
                else:
                    write(_line(what.__name__, percentiles(before + after), percentiles(beside), len(beside)))
                    before = after


def _line(name: str, quiet: tuple[float, float], beside: tuple[float, float], count: int) -> str:
    return (
        f"{name:<20} {beside[1]:8.2f} ms  {beside[1] / quiet[1]:6.1f} times the quiet {quiet[1]:.2f} ms"
        f"  (medians {beside[0]:.2f} and {quiet[0]:.2f} ms, {count} registrations)\n"
    )


if __name__ == "__main__":
    measure()
