"""A Redis server of their own as the broker of Celery's tests.

Celery's other broker without a server, a folder, reads messages that are still being written, and loses them.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.services import free_port


def missing() -> str:
    """What is not installed, with the command that installs it; "": nothing."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed: apt-get install redis-server"
    return "" if importlib.util.find_spec("redis") else "redis is not installed: pip install redis"


needs_broker = pytest.mark.skipif(bool(missing()), reason=missing() or "there is a broker")


@contextmanager
def broker(folder: Path) -> Iterator[str]:
    """The address of a Redis server that keeps nothing on disk."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL) as server:
        try:
            while not _answers(port):
                assert server.poll() is None, f"redis-server ended with {server.returncode}"
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
