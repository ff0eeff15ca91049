"""What clients of the daemon may do that takes its time, step by step. Each step ends, whatever the daemon does."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TypeAlias

from dspy_registry import ModuleInfo
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.evidence import Evidence
from dspy_registry.registry_store.layout import MAX_RECORD_VALUES, SOCKET_FILE
from dspy_registry.registry_store.protocol import (
    MAX_ANSWER_BYTES,
    VERSION,
    BatchProgress,
    FrameReader,
    Hello,
    Register,
    ReportUsage,
    frame,
    read_answer,
)
from dspy_registry.registry_store.reports import Batch, Report, encode_reports
from dspy_registry.registry_store.usage import MINUTES_KEPT, SIZES, Buckets
from dspy_registry.writer.daemon.bounds import Bounds

ANSWER_SECONDS: Final = 60.0
"""An answer that takes longer never comes: TimeoutError, an OSError."""
_RECEIVED_AT_ONCE: Final = 64 * 1024
_CONNECTIONS: Final = 1000
_REPORTS: Final = 300

Misbehaviour: TypeAlias = Callable[[Path, int], Generator[None, None, None]]
"""Of a registry's folder and the number of clients that do it: yields after each step. A step raises OSError."""


class Peer:
    """A connection that sends what it likes."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(ANSWER_SECONDS)
        self._frames = FrameReader(MAX_ANSWER_BYTES)
        try:
            self._socket.connect(str(path / SOCKET_FILE))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Raises OSError."""
        self._socket.sendall(data)

    def greet(self) -> None:
        """Become a client. Raises OSError."""
        self.send(frame(Hello(VERSION, os.urandom(16))))
        self.receive()

    def receive(self) -> bytes:
        """The next message. Raises OSError when none comes, or no more will."""
        until = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < until:
            for payload in self._frames.feed(b""):
                return payload
            data = self._socket.recv(_RECEIVED_AT_ONCE)
            if not data:
                raise ConnectionResetError("the daemon has closed the connection")
            for payload in self._frames.feed(data):
                return payload
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s")

    def answer(self) -> object:
        """The next answer, without signs of life. Raises OSError."""
        until = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < until:
            found = read_answer(self.receive())
            if not isinstance(found, BatchProgress):
                return found
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:g} s, only signs of life")


def _asking(path: Path, message: Callable[[int], bytes]) -> Generator[None, None, None]:
    """One connection that asks again and again, and waits for each answer."""
    with Peer(path) as peer:
        peer.greet()
        number = 0
        while True:
            number += 1
            peer.send(message(number))
            if number == 1:
                yield  # it has begun
            peer.answer()
            yield


def refused_records(path: Path, clients: int) -> Generator[None, None, None]:
    """Records of a million values."""
    record = encode(ModuleInfo("load.Refused", metadata={"x": [[]] * 1_000_000}))
    return _asking(path, lambda number: frame(Register(number, number, record)))


def costly_records(path: Path, clients: int) -> Generator[None, None, None]:
    """Records of as many values as are allowed, each another one."""
    values: list[list[object]] = [[] for _ in range(MAX_RECORD_VALUES - 2)]
    return _asking(
        path,
        lambda number: frame(
            Register(number, number, encode(ModuleInfo("load.Costly", metadata={"n": number, "x": values})))
        ),
    )


def usage_batches(path: Path, clients: int) -> Generator[None, None, None]:
    """Batches that are nearly as large as a message may be."""
    reporter, now = os.urandom(16), time.time_ns() // 1_000_000
    evidence = dict.fromkeys(SIZES, Evidence(Buckets(0, tuple((key, 1) for key in range(-100, 120)))))
    minutes = tuple((now // 60_000 - ago, 1) for ago in range(MINUTES_KEPT))
    reports = tuple(
        Report((f"load.Used{number}",), 1, 0, now, now, minutes=minutes, evidence=evidence)
        for number in range(_REPORTS)
    )
    return _asking(path, lambda number: frame(ReportUsage(number, encode_reports(Batch(reporter, number, reports)))))


def bad_frames(path: Path, clients: int) -> Generator[None, None, None]:
    """Connections that send what is no message."""
    while True:
        with Peer(path) as peer:
            peer.send(struct.pack(">I", 0xFFFFFFFF))
            peer.receive()
        yield


def idle_connections(path: Path, clients: int) -> Generator[None, None, None]:
    """As many connections as there may be, that say nothing."""
    with ExitStack() as kept:
        for _ in range(_CONNECTIONS // clients):
            kept.enter_context(Peer(path)).greet()
        time.sleep(Bounds().spared)  # younger ones make no room for others
        while True:
            yield
            time.sleep(0.05)
