"""Watchers in processes of their own: of the registry, of a Redis channel, and of a key in etcd."""

from __future__ import annotations

import base64
import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from benchmarks.workers import PATIENCE, requests
from dspy_registry import ModuleInfo, Registry, RegistryWriter

CHANNEL: Final = "bench"
_KEY: Final = base64.b64encode(b"bench").decode()

Subscribe = Callable[[Any], Iterator[int]]
"""Yields -1 once it listens, then the number of each thing that it is told."""


class Source:
    """Something that can be watched. `publish` acknowledges one change and returns its number."""

    label = ""

    def missing(self) -> str | None:
        """Why it cannot be measured here. None: it can."""
        return None

    def start(self, folder: Path) -> Any:
        """Start it; what `subscribe` takes."""
        raise NotImplementedError

    def publish(self) -> int:
        """Make one change. It is acknowledged when this returns."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it."""
        raise NotImplementedError


class OfRegistry(Source):
    """An embedded writer of a registry."""

    label = "registry"

    def start(self, folder: Path) -> Path:
        self._writer = RegistryWriter(folder / "registry")
        self._count = 0
        return folder / "registry"

    def publish(self) -> int:
        self._count += 1
        return self._writer.register_module(ModuleInfo("bench.Watched", estimated_duration=self._count))

    def stop(self) -> None:
        self._writer.close()


def watch_registry(path: Path) -> Iterator[int]:
    with Registry(path) as registry:
        yield -1
        for change in registry.watch(registry.revision):
            yield change.revision


class OfRedis(Source):
    """Redis pub/sub over a Unix socket. It keeps nothing, so an acknowledgement promises less than a commit."""

    label = "Redis pub/sub"

    def missing(self) -> str | None:
        return None if shutil.which("redis-server") else "redis-server is not on the path"

    def start(self, folder: Path) -> str:
        import redis

        address = str(folder / "redis.sock")
        command = ["redis-server", "--unixsocket", address, "--port", "0", "--save", "", "--appendonly", "no"]
        self._server = subprocess.Popen([*command, "--dir", str(folder)], stdout=subprocess.DEVNULL)
        self._client = redis.Redis(unix_socket_path=address)
        self._count = 0
        _until(self._client.ping)
        return address

    def publish(self) -> int:
        self._count += 1
        self._client.publish(CHANNEL, self._count)
        return self._count

    def stop(self) -> None:
        self._server.terminate()
        self._server.wait()


def watch_redis(address: str) -> Iterator[int]:
    import redis

    listening = redis.Redis(unix_socket_path=address).pubsub()  # type: ignore[no-untyped-call]
    listening.subscribe(CHANNEL)
    for message in listening.listen():
        yield -1 if message["type"] == "subscribe" else int(message["data"])


class OfEtcd(Source):
    """A watch of one etcd on this host, through its JSON gateway, over one connection that is kept."""

    label = "etcd watch"

    def missing(self) -> str | None:
        return None if shutil.which("etcd") else "etcd is not on the path"

    def start(self, folder: Path) -> int:
        client, peer = _free_port(), _free_port()
        urls = {"client": f"http://127.0.0.1:{client}", "peer": f"http://127.0.0.1:{peer}"}
        command = ["etcd", "--data-dir", str(folder / "etcd"), "--log-level", "error"]
        command += ["--listen-client-urls", urls["client"], "--advertise-client-urls", urls["client"]]
        command += ["--listen-peer-urls", urls["peer"], "--initial-advertise-peer-urls", urls["peer"]]
        command += ["--initial-cluster", f"default={urls['peer']}"]
        self._server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._connection = http.client.HTTPConnection("127.0.0.1", client, timeout=PATIENCE)
        self._count = 0
        _until(self.publish)
        return client

    def publish(self) -> int:
        self._count += 1
        value = base64.b64encode(b"%d" % self._count).decode()
        try:
            self._connection.request("POST", "/v3/kv/put", json.dumps({"key": _KEY, "value": value}))
            answer = json.loads(self._connection.getresponse().read())
        except OSError:
            self._connection.close()
            raise
        return int(answer["header"]["revision"])

    def stop(self) -> None:
        self._connection.close()
        self._server.terminate()
        self._server.wait()


def watch_etcd(port: int) -> Iterator[int]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v3/watch", json.dumps({"create_request": {"key": _KEY}}))
    answer = connection.getresponse()
    while line := answer.readline():
        told = json.loads(line)["result"]
        if told.get("created"):
            yield -1
        for event in told.get("events", ()):
            yield int(event["kv"]["mod_revision"])


WATCHED: Final[tuple[tuple[type[Source], Subscribe], ...]] = (
    (OfRegistry, watch_registry),
    (OfRedis, watch_redis),
    (OfEtcd, watch_etcd),
)


def listen(subscribe: Subscribe, where: Any, pipe: Connection) -> None:
    """A process with one watcher. It answers with the times at which it was told, or with what it costs to be idle."""
    times: dict[int, int] = {}
    is_listening = threading.Event()

    def follow() -> None:
        with suppress(Exception):  # its source was stopped: the row is over
            for number in subscribe(where):
                times[number] = time.monotonic_ns()
                is_listening.set()

    threading.Thread(target=follow, daemon=True).start()
    is_listening.wait(PATIENCE)
    pipe.send("ready")
    for what, amount in requests(pipe):
        if what == "times":
            deadline = time.monotonic() + PATIENCE
            while amount not in times and time.monotonic() < deadline:
                time.sleep(0.01)
            pipe.send(dict(times))
        else:
            began = time.process_time()
            time.sleep(amount)
            pipe.send((time.process_time() - began) / amount)


def crowd(path: Path, count: int, pipe: Connection) -> None:
    """A process with `count` watchers of one registry, which can be switched on and off."""
    registry = Registry(path)
    is_on = threading.Event()
    threads: list[threading.Thread] = []

    def follow() -> None:
        while is_on.is_set():
            for _ in registry.watch(timeout=1.0):
                if not is_on.is_set():
                    return

    pipe.send("ready")
    for on in requests(pipe):
        if on:
            is_on.set()
            threads = [threading.Thread(target=follow, daemon=True) for _ in range(count)]
            for thread in threads:
                thread.start()
        else:
            is_on.clear()
            for thread in threads:
                thread.join(PATIENCE)
        pipe.send(on)
    registry.close()


def _until(ping: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            ping()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
