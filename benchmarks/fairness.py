"""What one client waits for a registration while others misbehave: `python -m benchmarks.fairness`.

It reports the 99th percentile of each case as a multiple of the quiet one. It decides nothing: the tests in
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

SECONDS: Final = 5.0
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


def p99(path: Path, seconds: float = SECONDS) -> float:
    """Milliseconds, of registrations by one client. Raises RegistryError when the daemon is away."""
    times: list[float] = []
    with WriterClient(path, timeout=PATIENCE) as client:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            began = time.perf_counter()
            client.register_module(ModuleInfo("quiet.Module", metadata={"n": len(times), "at": began}))
            times.append(time.perf_counter() - began)
            time.sleep(0.002)
    return sorted(times)[int(len(times) * 0.99)] * 1000


def measure(
    write: Callable[[str], object] = sys.stdout.write, seconds: float = SECONDS, clients: int = CLIENTS
) -> None:
    """Tell a line for each case."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_FOLDER")) as name:
        path = Path(name) / "registry"
        with serving(path):
            quiet = p99(path, seconds)
            write(f"{'quiet':<20} {quiet:8.2f} ms\n")
            for what in CASES:
                try:
                    with misbehaving(path, what, clients):
                        found = p99(path, seconds)
                except (RegistryError, RuntimeError) as error:
                    write(f"{what.__name__:<20} not measured: {error}\n")
                else:
                    write(f"{what.__name__:<20} {found:8.2f} ms  {found / quiet:6.1f} times\n")


if __name__ == "__main__":
    measure()
