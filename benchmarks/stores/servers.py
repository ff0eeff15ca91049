"""Stores in a separate process: Redis, and the standard library's manager."""

from __future__ import annotations

import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from benchmarks.stores.peer import Opening, Peer, decode
from dspy_registry import ModuleInfo

_START_TIMEOUT = 10.0  # seconds


class ByGet:
    """A store whose reads are one call that returns the encoded record."""

    def __init__(self, get: Callable[[str], Any], close: Callable[[], object] = lambda: None) -> None:
        self._get = get
        self.close = close

    def get(self, name: str) -> ModuleInfo:
        return decode(self._get(name))


def open_redis(socket: str) -> ByGet:
    """Keeps one connection over the Unix socket, without a pool. The C parser of hiredis reads the answers."""
    import redis

    client = redis.Redis(unix_socket_path=socket, single_connection_client=True)
    return ByGet(client.get, client.close)


class Redis(Peer):
    """A private Redis server, with persistence off."""

    key = "redis"
    label = "Redis (Unix socket)"
    install = "apt-get install redis-server; pip install redis hiredis"
    module = "redis"
    settings = "Unix socket, no persistence, one connection kept open, hiredis parser"

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._socket = ""

    def missing(self) -> str | None:
        if shutil.which("redis-server") is None:
            return f"redis-server is not on the path ({self.install})"
        return super().missing()

    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        import redis

        self._socket = str(folder / "redis.sock")
        command = ["redis-server", "--unixsocket", self._socket, "--port", "0", "--save", "", "--appendonly", "no"]
        self._server = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
        with redis.Redis(unix_socket_path=self._socket) as client:
            _wait_for(client.ping, redis.ConnectionError)
            with client.pipeline(transaction=False) as pipeline:
                for name, record in records:
                    pipeline.set(name, record)
                pipeline.execute()

    def opening(self) -> Opening:
        return Opening(self.label, partial(open_redis, self._socket))

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server = None

    def version(self) -> str:
        said = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        server = next((word[2:] for word in said.split() if word.startswith("v=")), "?")
        return f"server {server}, redis-py {super().version()}"


def _wait_for(ping: Callable[[], object], not_yet: type[Exception]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        try:
            ping()
        except not_yet:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


def open_manager(proxy: Any) -> ByGet:
    """A proxy keeps its connection to the manager by itself."""
    return ByGet(proxy.get)


class Manager(Peer):
    """`multiprocessing.Manager().dict` of encoded records, which are quicker than pickled structs."""

    key = "manager"
    label = "multiprocessing.Manager"
    install = "part of Python"
    module = "multiprocessing"
    settings = "one dict of encoded records, proxy kept open"

    def __init__(self) -> None:
        self._manager: SyncManager | None = None
        self._proxy: Any = None

    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        self._manager = SyncManager()
        self._manager.start()
        self._proxy = self._manager.dict()
        self._proxy.update(dict(records))

    def opening(self) -> Opening:
        return Opening(self.label, partial(open_manager, self._proxy))

    def stop(self) -> None:
        if self._manager is not None:
            self._proxy = None
            self._manager.shutdown()
            self._manager = None

    def version(self) -> str:
        return f"Python {platform.python_version()}"
