"""Writer daemons as processes of their own, and peers that speak to them byte by byte."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, RegistryError, WriterClient
from dspy_registry.registry_store import protocol
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.protocol import (
    Answer,
    BatchProgress,
    Failed,
    FrameReader,
    Hello,
    Register,
    Welcome,
    frame,
)
from dspy_registry.registry_store.wire_errors import unpack
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.support.processes import child, say

PATIENT = 60.0
"""Seconds: a limit that no test is about."""


class Served:
    """A running daemon. What it is told to do is in `serve` below."""

    def __init__(self, path: Path, process: Any) -> None:
        self.path = path
        self.process = process
        self.pid: int = process.pid

    def client(self, timeout: float | None = PATIENT) -> WriterClient:
        return WriterClient(self.path, timeout=timeout)

    def peer(self, client: bytes | None = None) -> Peer:
        """A connection that was greeted."""
        peer = Peer(self.path)
        peer.greet(client or os.urandom(16))
        return peer

    def kill(self) -> None:
        assert self.process.kill() == -signal.SIGKILL

    @property
    def memory(self) -> int:
        """Bytes that it takes of memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Meanwhile it answers nobody, however long one waits."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit status once it has ended in its own time."""
        os.kill(self.pid, number)
        status: int = self.process.wait()
        return status


@contextmanager
def daemon(path: Path, *, function: str = "serve", **environment: str) -> Iterator[Served]:
    """A daemon that accepts clients; `function` of this module is what its process runs."""
    with daemon_of(__name__, function, path, **environment) as served:
        yield served


@contextmanager
def daemon_of(module: str, function: str, path: Path, *arguments: Any, **environment: str) -> Iterator[Served]:
    """The same for a function of another module of tests. It says "ready" when clients can connect."""
    with child(module, function, path, *arguments, **environment) as process:
        assert process.hear() == "ready"
        yield Served(path, process)


# The daemon's side


def serve(path: str, **options: Any) -> None:
    """A daemon that says when it is ready."""
    Daemon(path, **options).run(ready)


def ready(_: Daemon) -> None:
    """Tell the parent that clients can connect."""
    say("ready")


def serve_within(path: str, bounds: dict[str, Any]) -> None:
    """A daemon with other bounds than the usual ones."""
    serve(path, bounds=Bounds(**bounds))


# A peer


class Peer:
    """A bare connection to a daemon."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(PATIENT)
        self.socket.connect(str(path / "writer.sock"))
        self._frames = FrameReader(protocol.MAX_ANSWER_BYTES)
        self._payloads: list[bytes] = []

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def greet(self, client: bytes) -> None:
        self.send(Hello(protocol.VERSION, client))
        welcome = self.welcome()
        assert isinstance(welcome, Welcome), welcome

    def welcome(self) -> Any:
        payload = self._payload()
        assert payload is not None
        return protocol.read_welcome(payload)

    def send(self, *messages: Any) -> None:
        """In one write, so that the daemon receives them together."""
        self.socket.sendall(b"".join(frame(message) for message in messages))

    def receive(self) -> Answer | None:
        """The next answer, signs of life apart; None when the daemon has closed the connection."""
        while isinstance(answer := self.receive_any(), BatchProgress):
            pass
        return answer

    def receive_any(self) -> Answer | None:
        """The next message, be it that a request waits; None when the daemon has closed the connection."""
        payload = self._payload()
        return None if payload is None else protocol.read_answer(payload)

    def ask(self, *messages: Any) -> list[Any]:
        """As many answers as messages, by rising id."""
        self.send(*messages)
        answers = [self.receive() for _ in messages]
        assert None not in answers
        return sorted(answers, key=lambda answer: answer.id)  # type: ignore[union-attr]

    def _payload(self) -> bytes | None:
        while not self._payloads:
            data = self.socket.recv(65536)
            if not data:
                return None
            self._payloads += self._frames.feed(data)
        return self._payloads.pop(0)


def module(name: str, **fields: Any) -> ModuleInfo:
    """A sound module with these fields."""
    return ModuleInfo(name=name, **{"category": "prediction", "capabilities": ("summarisation",), **fields})


def registration(request: int, info: ModuleInfo, expected_version: int | None = None, *, oldest: int = 0) -> Register:
    """A request to register a module, as a client sends it."""
    return Register(request, oldest or request, encode(info), expected_version)


@contextmanager
def unimpressed(served: Served) -> Iterator[None]:
    """Afterwards the registry is what it was, and the daemon as it was."""
    with Registry(served.path) as registry:
        before = (registry.revision, dict(registry))
        yield
        assert (registry.revision, dict(registry)) == before
    with served.client() as client:
        assert client.status().pid == served.pid
        client.register_module(module("acme.After"))


def refused(answer: Any) -> RegistryError:
    """The error that an answer carries."""
    assert isinstance(answer, Failed)
    return unpack(answer)
