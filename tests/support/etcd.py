"""Real etcd nodes on loopback, and hosts that share them: a daemon with a registry of its own for each."""

from __future__ import annotations

import base64
import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from dspy_registry import Registry
from tests.support.daemon_process import Served, daemon_of, serve

ETCD = shutil.which("etcd") or next((path for path in ("/usr/bin/etcd", "/usr/sbin/etcd") if Path(path).exists()), None)
needs_etcd = pytest.mark.skipif(ETCD is None, reason="etcd is not installed: apt-get install etcd-server")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nothing listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


class Node:
    """One etcd node."""

    def __init__(self, name: str, folder: Path, client: str, peer: str, members: str, options: tuple[str, ...]) -> None:
        self.name = name
        self.url = client
        self._log = folder / f"{name}.log"
        self._command = [
            str(ETCD),
            *("--name", name, "--data-dir", str(folder / name), "--log-level", "error"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", members, "--initial-cluster-state", "new", *options),
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()


class EtcdCluster:
    """Some nodes, and what tests ask of them."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = nodes

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def post(self, path: str, body: dict[str, Any], node: int = 0) -> Any:
        request = urllib.request.Request(f"{self.nodes[node].url}{path}", json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def wait(self) -> None:
        """Until every node that runs takes part."""
        for number in range(len(self.nodes)):
            patient(lambda number=number: self._answers(number))

    def _answers(self, node: int) -> bool:
        try:
            self.post("/v3/kv/range", {"key": b64(b"x")}, node)
        except OSError:
            return False
        return True

    @property
    def revision(self) -> int:
        return int(self.post("/v3/kv/range", {"key": b64(b"x")})["header"]["revision"])

    def compact(self) -> None:
        """Forget everything before now. A revision that is compacted already stays so."""
        with suppress(HTTPError):
            self.post("/v3/kv/compaction", {"revision": str(self.revision), "physical": True})

    def keys(self, prefix: bytes) -> dict[bytes, bytes]:
        end = prefix[:-1] + bytes([prefix[-1] + 1])
        found = self.post("/v3/kv/range", {"key": b64(prefix), "range_end": b64(end)})
        return {base64.b64decode(kv["key"]): base64.b64decode(kv.get("value", "")) for kv in found.get("kvs", ())}

    def _found(self, key: bytes) -> dict[str, str]:
        found: dict[str, str] = self.post("/v3/kv/range", {"key": b64(key)})["kvs"][0]
        return found

    def modified(self, key: bytes) -> int:
        """The revision that last wrote a key."""
        return int(self._found(key)["mod_revision"])

    def lease(self, key: bytes) -> int:
        """The lease that a key ends with; 0: none."""
        return int(self._found(key).get("lease", 0))

    def put(self, key: bytes, value: bytes, lease: int = 0) -> None:
        self.post("/v3/kv/put", {"key": b64(key), "value": b64(value), "lease": str(lease)})

    def delete(self, key: bytes) -> None:
        self.post("/v3/kv/deleterange", {"key": b64(key)})


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def patient(condition: Any, seconds: float = 60.0) -> Any:
    """What `condition` gives once it is true. The limit only ends a test that would hang."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.02)
    return found


@contextmanager
def etcd(folder: Path, count: int = 1, options: tuple[str, ...] = (), scheme: str = "http") -> Iterator[EtcdCluster]:
    """A cluster of so many nodes."""
    folder.mkdir(parents=True, exist_ok=True)
    ports = free_ports(2 * count)
    clients = [f"{scheme}://127.0.0.1:{port}" for port in ports[:count]]
    peers = [f"http://127.0.0.1:{port}" for port in ports[count:]]
    members = ",".join(f"n{number}={peer}" for number, peer in enumerate(peers))
    nodes = [
        Node(f"n{number}", folder, client, peer, members, options)
        for number, (client, peer) in enumerate(zip(clients, peers, strict=True))
    ]
    cluster = EtcdCluster(nodes)
    try:
        for node in nodes:
            node.start()
        if scheme == "http":
            cluster.wait()
        yield cluster
    finally:
        for node in nodes:
            node.kill()


@contextmanager
def host(folder: Path, cluster: EtcdCluster, **environment: str) -> Iterator[Served]:
    """A daemon that follows the cluster."""
    with daemon_of(__name__, "serve_cluster", folder, cluster.urls, **environment) as served:
        yield served


def serve_cluster(
    path: str, urls: list[str], options: dict[str, Any] | None = None, manifests: str | None = None
) -> None:
    """In the daemon's process. `manifests`: a folder that it follows too."""
    from dspy_registry.writer.cluster.attach import attach_cluster
    from dspy_registry.writer.cluster.options import ClusterOptions

    named = {key: Path(value) if key in ("ca", "cert", "key") else value for key, value in (options or {}).items()}
    chosen = ClusterOptions(endpoints=tuple(urls), **named)
    follow = [lambda served: attach_cluster(served, chosen)]
    if manifests is not None:
        from dspy_registry.cli.manifests import watching

        found = watching(manifests=Path(manifests), discover=False, packages=(), python=None, timeout=None)
        follow.append(lambda served: found(served))
    serve(path, extensions=follow)


def section(served: Served) -> dict[str, Any]:
    """What the daemon says of the cluster."""
    with served.client() as client:
        found: dict[str, Any] = client.status().sections["cluster"]
        return found


def in_step(*hosts: Served) -> int:
    """Wait until every host has applied what any of them has; the global count of changes."""
    changes = max(int(section(one)["changes"]) for one in hosts)
    for one in hosts:
        patient(lambda one=one: section(one)["changes"] >= changes)
    return changes


def shown(folder: Path) -> dict[str, Any]:
    """What readers of a host see of clients' modules: record and version, in the order of registration."""
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        found = {}
        for name in snapshot:
            kept = snapshot.describe(name)
            if kept.provenance.source == "client":
                found[name] = (kept.info, kept.provenance.version, kept.provenance.global_revision)
        return found


def stop(node: Node) -> None:
    """The node answers nothing until it is continued."""
    node.signal(signal.SIGSTOP)


def resume(node: Node) -> None:
    node.signal(signal.SIGCONT)
