"""What a cluster costs: three etcd nodes and three hosts on this machine, beside bare etcd. `make bench-cluster`.

Prints one JSON object. Everything shares this machine's processors, so only ratios of one run mean something.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, WriterClient
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.options import ClusterOptions
from tests.support.daemon_process import Served
from tests.support.etcd import EtcdCluster, etcd, host, in_step, patient, section

CLIENTS = 64


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
                time.sleep(0)
            took.append(time.perf_counter() - began)
    return figures(took)


def at_once(hosts: Sequence[Served], each: int) -> float:
    """Registrations a second that 64 clients over all hosts are told of."""
    ready = threading.Barrier(CLIENTS + 1)

    def run(number: int) -> None:
        with WriterClient(hosts[number % len(hosts)].path, timeout=120) as client:
            client.status()
            ready.wait()
            for step in range(each):
                client.register_module(ModuleInfo(name=f"bench.Client{number}", estimated_duration=step))
            ready.wait()

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    ready.wait()
    began = time.perf_counter()
    ready.wait()
    return CLIENTS * each / (time.perf_counter() - began)


def one_after_another(cluster: EtcdCluster, count: int) -> dict[str, float]:
    """Bare etcd: compare-and-set, and until a watcher on another node sees it, over the same gateway."""

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

    took = asyncio.run(run())
    return {**figures(took), "a_second": round(len(took) / sum(took), 1)}


def timed(act: Callable[[], Any]) -> float:
    """Seconds that it took."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def catching_up(stack: ExitStack, folder: Path, cluster: EtcdCluster, first: Served, count: int) -> dict[str, float]:
    """Seconds until a new host has everything, and of a bare range read of the same."""
    with WriterClient(first.path, timeout=600) as client:
        for start in range(0, count, 5000):
            client.register_modules([ModuleInfo(name=f"bench.M{number}") for number in range(start, start + 5000)])
    patient(lambda: not cluster.keys(b"/dspy-registry/d/b/"), 600)

    async def read() -> None:
        engine = Etcd(ClusterOptions(endpoints=tuple(cluster.urls)))
        after, more = b"", True
        while more:
            page = await engine.range_at(b"/dspy-registry/d/", after)
            after, more = page.items[-1].key, page.more
        await engine.close()

    began = time.perf_counter()
    late = stack.enter_context(host(folder, cluster))
    wanted = section(first)["changes"]
    patient(lambda: section(late)["changes"] >= wanted, 600)
    return {
        "modules": count,
        "new_host_s": round(time.perf_counter() - began, 2),
        "bare_range_s": round(timed(lambda: asyncio.run(read())), 2),
    }


def main(arguments: Sequence[str]) -> None:
    """Measure; `--quick` for less of everything."""
    less = 10 if "--quick" in arguments else 1
    with tempfile.TemporaryDirectory() as tmp, ExitStack() as stack:
        folder = Path(tmp)
        cluster = stack.enter_context(etcd(folder / "etcd", 3))
        hosts = [stack.enter_context(host(folder / name, cluster)) for name in ("a", "b", "c")]
        for served in hosts:
            patient(lambda served=served: section(served)["error"] == "")
        found = {
            "bare etcd, compare-and-set until another node's watcher sees it": one_after_another(cluster, 500 // less),
            "registered on one host, read on every host": everywhere(hosts, 500 // less),
            "registrations a second, 64 clients over three hosts": round(at_once(hosts, 40 // less), 1),
            "conflicts": sum(section(served)["conflicts"] for served in hosts),
        }
        in_step(*hosts)
        found["a new host catches up"] = catching_up(stack, folder / "late", cluster, hosts[0], 100_000 // less)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
