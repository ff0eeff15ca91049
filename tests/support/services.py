"""The web and task servers that the integrations are tested with, as processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support import ROOT


def free_port() -> int:
    """A port of the loopback address that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Server:
    """A running server. `ended` says how it ended."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.log = log

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)

    def wait_until_up(self, path: str = "/healthz") -> None:
        """Return once it answers."""
        while True:
            assert self.process.poll() is None, self.log.read_text()
            try:
                httpx.get(self.url + path, timeout=60)
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ask it to end; its exit status."""
        self.process.send_signal(number)
        return self.process.wait(60)


@contextmanager
def serving(command: list[str], registry: Path, log: Path, port: int = 0) -> Iterator[Server]:
    """A server that is started with `command`, and ended at the latest when the test is done."""
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "DSPY_REGISTRY": str(registry), "PYTHONPATH": paths}
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command], stdout=output, stderr=output, env=environment, cwd=log.parent
        )
    try:
        yield Server(process, port, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
