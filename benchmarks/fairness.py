"""What one client waits for a registration while others misbehave: `python -m benchmarks.fairness`.

It reports the 99th percentile of each case as a multiple of the quiet one. It decides nothing: the tests in
tests/writer/daemon assert the mechanisms.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Final

from benchmarks.serving import serving
from dspy_registry import ModuleInfo, WriterClient
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.layout import MAX_RECORD_VALUES
from dspy_registry.registry_store.protocol import (
    MAX_ANSWER_BYTES,
    VERSION,
    FrameReader,
    Hello,
    Register,
    frame,
)

SECONDS: Final = 5.0
_CLIENTS: Final = 8

Misbehaviour = Callable[[Path, Event], None]


def _refused_record() -> bytes:
    return encode(ModuleInfo("load.Refused", metadata={"x": [[] for _ in range(1_000_000)]}))


def _costly_record(number: int) -> bytes:
    return encode(ModuleInfo("load.Costly", metadata={"n": number, "x": [[] for _ in range(MAX_RECORD_VALUES - 2)]}))


def _asking(path: Path, end: Event, message: Callable[[int], object]) -> None:
    """One connection that asks again and again, and waits for each answer."""
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(path / "writer.sock"))
        frames = FrameReader(MAX_ANSWER_BYTES)
        peer.sendall(frame(Hello(VERSION, os.urandom(16))))
        list(frames.feed(peer.recv(65536)))
        number = 0
        while not end.is_set():
            number += 1
            peer.sendall(frame(message(number)))  # type: ignore[arg-type]
            while not list(frames.feed(peer.recv(65536))):
                pass


def refused_records(path: Path, end: Event) -> None:
    """Records of a million values."""
    record = _refused_record()
    _asking(path, end, lambda number: Register(number, number, record))


def costly_records(path: Path, end: Event) -> None:
    """Records of as many values as are allowed."""
    _asking(path, end, lambda number: Register(number, number, _costly_record(number)))


def idle_connections(path: Path, end: Event) -> None:
    """As many connections as there may be, that say nothing."""
    with ExitStack() as kept:
        for _ in range(1000 // _CLIENTS):
            peer = kept.enter_context(socket.socket(socket.AF_UNIX))
            peer.connect(str(path / "writer.sock"))
            peer.sendall(frame(Hello(VERSION, os.urandom(16))))
        end.wait()


def bad_frames(path: Path, end: Event) -> None:
    """Connections that send what is no message."""
    while not end.is_set():
        with socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path / "writer.sock"))
            peer.sendall(struct.pack(">I", 0xFFFFFFFF))
            peer.recv(65536)


@contextmanager
def misbehaving(path: Path, what: Misbehaviour | None) -> Iterator[None]:
    """Eight clients at it, each a process."""
    processes = multiprocessing.get_context("spawn")
    end = processes.Event()
    children = [processes.Process(target=what, args=(path, end)) for _ in range(_CLIENTS if what else 0)]
    for child in children:
        child.start()
    try:
        time.sleep(3.0)  # a process takes its time to begin
        yield
    finally:
        end.set()
        for child in children:
            child.join()


def p99(path: Path) -> float:
    """Milliseconds, of registrations by one client."""
    times: list[float] = []
    with WriterClient(path, timeout=60) as client:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            began = time.perf_counter()
            client.register_module(ModuleInfo("quiet.Module", metadata={"n": len(times), "at": began}))
            times.append(time.perf_counter() - began)
            time.sleep(0.002)
    return sorted(times)[int(len(times) * 0.99)] * 1000


def main() -> None:
    """Print a line for each case."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "registry"
        with serving(path):
            quiet = p99(path)
            sys.stdout.write(f"{'quiet':<20} {quiet:8.2f} ms\n")
            for what in (refused_records, costly_records, idle_connections, bad_frames):
                with misbehaving(path, what):
                    found = p99(path)
                sys.stdout.write(f"{what.__name__:<20} {found:8.2f} ms  {found / quiet:6.1f} times\n")


if __name__ == "__main__":
    main()
