"""Three hosts of a cluster: each has a proxy before every etcd node, a wall clock that jumps, and points to die at."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.daemon_process import Served
from tests.support.etcd import EtcdCluster, patient, section, serve_cluster
from tests.support.lossy_proxy import LossyProxy, lossy
from tests.support.processes import Process


class Behind:
    """A host whose daemon sees etcd through proxies. It is started again after each death."""

    def __init__(self, folder: Path, proxies: list[LossyProxy]) -> None:
        self.folder = folder
        self.proxies = proxies
        self._clock = folder.with_suffix(".clock")
        self._clock.write_text("0", encoding="ascii")
        self._process: Process | None = None

    @property
    def served(self) -> Served:
        return Served(self.folder, self._process)

    def start(self, failpoint: str = "") -> None:
        urls = [proxy.url for proxy in self.proxies]
        environment = {"DSPY_REGISTRY_FAILPOINTS": failpoint} if failpoint else {}
        self._process = Process(__name__, "serve_by_clock", str(self.folder), urls, str(self._clock), **environment)
        self._process.hear()  # "ready", or nothing when it died at its point before

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process._process.close()
            self._process = None

    def start_again(self, failpoint: str = "") -> None:
        self.kill()
        self.start(failpoint)

    def jump(self, seconds: int) -> None:
        """Its wall clock, from now on."""
        self._clock.write_text(str(seconds), encoding="ascii")

    def cut(self) -> None:
        for proxy in self.proxies:
            proxy.cut()

    def mend(self) -> None:
        for proxy in self.proxies:
            proxy.is_mute = False
            proxy.lose.clear()
            proxy.mend()

    def says(self) -> str:
        """What its daemon says of the cluster, or why it says nothing."""
        try:
            return repr(section(self.served))
        except Exception as error:
            return repr(error)

    def has_applied(self, changes: int) -> bool:
        """Whether it shows so many changes of the cluster, and nothing is wrong or waits."""
        with suppress(Exception):
            told = section(self.served)
            return bool(told["changes"] >= changes and not told["error"] and not told["waiting"])
        return False


def serve_by_clock(path: str, urls: list[str], clock: str) -> None:
    """In the daemon's process. Its wall clock is as many seconds off as the file says."""
    true_time, true_ns = time.time, time.time_ns

    def off() -> int:
        return int(Path(clock).read_text(encoding="ascii") or 0)

    time.time = lambda: true_time() + off()
    time.time_ns = lambda: true_ns() + off() * 10**9
    serve_cluster(path, urls)


@contextmanager
def three_hosts(room: Path, cluster: EtcdCluster) -> Iterator[list[Behind]]:
    with ExitStack() as stack:
        hosts = []
        for name in ("a", "b", "c"):
            proxies = [stack.enter_context(lossy(url)) for url in cluster.urls]
            hosts.append(Behind(room / name, proxies))
            stack.callback(hosts[-1].kill)
            hosts[-1].start()
        yield hosts


def anywhere(cluster: EtcdCluster, path: str, body: dict[str, Any]) -> Any:
    """Ask whichever node answers."""

    def ask() -> Any:
        for node in range(len(cluster.nodes)):
            with suppress(OSError):
                return [cluster.post(path, body, node)]
        return None

    return patient(ask)[0]


def compact(cluster: EtcdCluster, revision: int) -> None:
    """Forget everything before a revision, unless that was done already."""
    for node in range(len(cluster.nodes)):
        with suppress(OSError):
            cluster.post("/v3/kv/compaction", {"revision": str(revision), "physical": True}, node)
            return


def free_space(cluster: EtcdCluster) -> None:
    """What docs/cluster.md tells an operator of a full quota to do, once it is compacted."""
    for node in range(len(cluster.nodes)):
        with suppress(OSError):
            cluster.post("/v3/maintenance/defragment", {}, node)
    for alarm in anywhere(cluster, "/v3/maintenance/alarm", {"action": "GET"}).get("alarms", ()):
        anywhere(cluster, "/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarm})


def pause(chance: random.Random, most: float) -> None:
    """Let a fault last. How long decides nothing that is judged."""
    time.sleep(chance.random() * most)
