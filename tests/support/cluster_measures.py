"""What `tests.support.cluster_figures` measures, each beside what it is compared with."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, RegistryWriter, WriterClient
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.options import ClusterOptions
from tests.support.daemon_process import Served
from tests.support.etcd import EtcdCluster, host, patient, section
from tests.support.processes import child, requests, say

CLIENTS = 64
_READS = 20_000  # between two looks at the clock


def figures(seconds: Sequence[float]) -> dict[str, float]:
    """Median and p99, in milliseconds."""
    found = sorted(seconds)
    return {
        "median_ms": round(statistics.median(found) * 1000, 2),
        "p99_ms": round(found[min(len(found) - 1, int(len(found) * 0.99))] * 1000, 2),
    }


def everywhere(hosts: Sequence[Served], count: int) -> dict[str, float]:
    """Register on one host until it can be read on every host, one client."""
    took = []
    with ExitStack() as stack:
        client = stack.enter_context(WriterClient(hosts[0].path))
        readers = [stack.enter_context(Registry(served.path)) for served in hosts]
        for number in range(count):
            name = f"bench.Everywhere{number}"
            began = time.perf_counter()
            client.register_module(ModuleInfo(name=name))
            while not all(name in registry for registry in readers):
                time.sleep(0.0002)
            took.append(time.perf_counter() - began)
    return figures(took)


def at_once(hosts: Sequence[Served], each: int, begun: Callable[[], None] = lambda: None) -> float:
    """Registrations a second that 64 clients over all hosts are told of. The clients are a process of their own."""
    with child(__name__, "clients", [str(served.path) for served in hosts], each) as process:
        assert process.hear() == "ready"
        begun()
        return float(process.ask("go"))


def clients(folders: list[str], each: int) -> None:
    """In the clients' process."""
    ready = threading.Barrier(CLIENTS + 1)

    def run(number: int) -> None:
        with WriterClient(folders[number % len(folders)], timeout=120) as client:
            client.status()
            ready.wait()
            for step in range(each):
                client.register_module(ModuleInfo(name=f"bench.Client{number}", estimated_duration=step))
            ready.wait()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    say("ready")
    next(requests())
    ready.wait()
    began = time.perf_counter()
    ready.wait()
    say(CLIENTS * each / (time.perf_counter() - began))


def under_load(hosts: Sequence[Served], each: int) -> dict[str, Any]:
    """Registrations a second of 64 clients, and cached reads beside them and alone."""
    with child(__name__, "read_cached", str(hosts[0].path)) as reader:
        alone = reader.ask("begin") and reader.ask(1.0)
        told: dict[str, Any] = {}
        with child(__name__, "read_cached", str(hosts[0].path)) as other:
            rate = at_once(hosts, each)
            done = threading.Event()

            def load() -> None:
                told["beside"] = at_once(hosts, each, done.set)

            loading = threading.Thread(target=load)
            loading.start()
            done.wait()
            other.ask("begin")
            beside = other.ask(1.0)
            loading.join()
    return {"registrations_a_second": rate, "reads": {"alone": alone, "under_load": beside}}


def read_cached(path: str) -> None:
    """In a process of its own: cached reads per second of processor time, for as many seconds as it is told."""
    asked = requests()
    with Registry(path) as registry:
        for _ in range(3):
            registry.get_module("dspy.Predict")
        next(asked)
        say(True)
        seconds = float(next(asked))
        until, before, count = time.monotonic() + seconds, time.process_time(), 0
        while time.monotonic() < until:
            for _ in range(_READS):
                registry.get_module("dspy.Predict")
            count += _READS
        say(count / (time.process_time() - before))


def circuits(hosts: Sequence[Served], count: int) -> dict[str, float]:
    """A circuit is opened on one host until every host's readers know it."""
    took = []
    with ExitStack() as stack:
        client = stack.enter_context(WriterClient(hosts[0].path))
        readers = [stack.enter_context(Registry(served.path)) for served in hosts]
        for _ in range(count):
            began = time.perf_counter()
            client.open_circuit("dspy.Predict", 600.0)
            while not all(registry.health() for registry in readers):
                time.sleep(0.0002)
            took.append(time.perf_counter() - began)
            client.reset_circuit("dspy.Predict")
            patient(lambda: not any(registry.health() for registry in readers))
    return figures(took)


def local_commits(folder: Path, count: int) -> dict[str, float]:
    """A durable commit of one module on this machine, without a daemon."""
    took = []
    with RegistryWriter(folder) as writer:
        for number in range(count):
            info = ModuleInfo(name="bench.Local", estimated_duration=number)
            took.append(timed(lambda info=info: writer.register_module(info)))
    return figures(took)


def bare_cas(cluster: EtcdCluster, count: int) -> float:
    """Bare etcd: compare-and-sets a second, one after another, over the same gateway."""

    async def run() -> float:
        engine = Etcd(ClusterOptions(endpoints=tuple(cluster.urls[:1])))
        revision = (await engine.transact({}, {b"/bare/y": b"0"})).revision
        began = time.perf_counter()
        for _ in range(count):
            revision = (await engine.transact({b"/bare/y": revision}, {b"/bare/y": bytes(400)})).revision
        took = time.perf_counter() - began
        await engine.close()
        return round(count / took, 1)

    return asyncio.run(run())


def bare_watch(cluster: EtcdCluster, count: int) -> dict[str, float]:
    """Bare etcd: compare-and-set until a watcher on another node sees it, over the same gateway."""

    async def run() -> list[float]:
        writer, watcher = (Etcd(ClusterOptions(endpoints=(url,))) for url in cluster.urls[:2])
        seen: asyncio.Queue[int] = asyncio.Queue()
        began_at = (await writer.transact({}, {b"/bare/x": b"0"})).revision

        async def watch() -> None:
            async for events in watcher.watch_from(b"/bare/", began_at + 1):
                for change in events.changes:
                    seen.put_nowait(change.revision)

        task = asyncio.ensure_future(watch())
        await asyncio.sleep(0.5)
        took, revision = [], began_at
        for _ in range(count):
            began = time.perf_counter()
            revision = (await writer.transact({b"/bare/x": revision}, {b"/bare/x": bytes(400)})).revision
            while await seen.get() < revision:
                pass
            took.append(time.perf_counter() - began)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await writer.close()
        await watcher.close()
        return took

    return figures(asyncio.run(run()))


def timed(act: Callable[[], Any]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def catching_up(stack: ExitStack, folder: Path, cluster: EtcdCluster, first: Served, count: int) -> dict[str, float]:
    """Seconds until a new host has everything; of a bare range read of the same, and of a bulk load of as much."""
    infos = [ModuleInfo(name=f"bench.M{number}") for number in range(count)]
    with WriterClient(first.path, timeout=600) as client:
        for start in range(0, count, 5000):
            client.register_modules(infos[start : start + 5000])
    patient(lambda: not cluster.keys(b"/dspy-registry/d/b/"), 600)
    began = time.perf_counter()
    late = stack.enter_context(host(folder, cluster))
    wanted = section(first)["changes"]
    patient(lambda: section(late)["changes"] >= wanted, 600)
    return {
        "modules": count,
        "new_host_s": round(time.perf_counter() - began, 2),
        "bare_range_s": round(timed(lambda: asyncio.run(read_all(cluster))), 2),
        "bulk_load_s": round(timed(lambda: bulk_load(folder.with_suffix(".bulk"), infos)), 2),
    }


async def read_all(cluster: EtcdCluster) -> None:
    """All that a host lists, page by page."""
    engine = Etcd(ClusterOptions(endpoints=tuple(cluster.urls)))
    after, more = b"", True
    while more:
        page = await engine.range_at(b"/dspy-registry/d/", after)
        after, more = page.items[-1].key, page.more
    await engine.close()


def bulk_load(folder: Path, infos: Sequence[ModuleInfo]) -> None:
    """Register all in one durable commit."""
    with RegistryWriter(folder) as writer:
        writer.register_modules(infos)
