"""Replies that are lost, hosts that are cut off, daemons and nodes that are killed: nothing is lost or twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from dspy_registry import AsyncWriterClient, ConflictError, ModuleInfo, Registry, RegistryError, WriterClient, errors
from dspy_registry.registry_store.protocol import Done, Failed
from dspy_registry.writer.cluster.keys import head_codec
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module, registration
from tests.support.etcd import etcd, host, in_step, needs_etcd, patient, resume, section, shown, stop
from tests.support.lossy_proxy import lossy
from tests.support.raw_access import opened

pytestmark = needs_etcd
_HEAD = b"/dspy-registry/d/head"


def served_at(folder: Path, *urls: str) -> Any:
    return daemon_of("tests.support.etcd", "serve_cluster", folder, list(urls))


def test_a_lost_reply_is_no_second_change(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(etcd(tmp_path / "etcd"))
        proxy = stack.enter_context(lossy(cluster.urls[0]))
        a = stack.enter_context(served_at(tmp_path / "a", proxy.url))
        client = stack.enter_context(a.client())
        client.register_module(module("acme.One"))
        for number in range(2, 6):
            proxy.lose[b"success"] = 2  # a transaction's body; presence is one too
            client.register_module(module("acme.One", estimated_duration=number), expected_version=number - 1)
        assert shown(a.path)["acme.One"][1] == 5
        assert proxy.lost >= 4
    assert violations(tmp_path / "a") == []


def test_a_host_that_is_cut_off_reads_on_and_its_writes_fail_by_name(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = stack.enter_context(etcd(tmp_path / "etcd"))
        proxy = stack.enter_context(lossy(cluster.urls[0]))
        a = stack.enter_context(served_at(tmp_path / "a", proxy.url))
        b = stack.enter_context(host(tmp_path / "b", cluster))
        at_a, at_b = stack.enter_context(a.client()), stack.enter_context(b.client())
        at_a.register_module(module("acme.One"))
        in_step(a, b)
        proxy.cut()
        with pytest.raises(errors.ClusterUnavailableError):
            at_a.register_module(module("acme.Two"))
        with Registry(a.path) as registry:
            assert "acme.One" in registry
        patient(lambda: section(a)["error"])
        assert section(a)["lag_seconds"] > 0
        at_b.register_module(module("acme.Three"))
        proxy.mend()
        in_step(b, a)
        patient(lambda: section(a)["error"] == "")
        at_a.register_module(module("acme.Two"))
        in_step(a, b)
        assert shown(a.path) == shown(b.path)
        assert list(shown(a.path)) == ["acme.One", "acme.Three", "acme.Two"]


def test_a_host_goes_on_when_its_watch_ended_before_a_step_that_cannot_be_applied(tmp_path: Path) -> None:
    """A batch cannot be read, steps wait behind it, and the watch has ended: all is read again from the batch on."""
    with ExitStack() as stack:
        cluster = stack.enter_context(etcd(tmp_path / "etcd"))
        proxies = [stack.enter_context(lossy(cluster.urls[0])) for _ in range(2)]
        a = stack.enter_context(served_at(tmp_path / "a", *(proxy.url for proxy in proxies)))
        b = stack.enter_context(host(tmp_path / "b", cluster))
        in_step(a, b)
        for proxy in proxies:
            proxy.hold = b'"limit":"4"'  # a batch's pieces are read so
        client = stack.enter_context(b.client())
        client.register_modules([module(f"acme.Batch{number}") for number in range(110)])
        patient(lambda: any(proxy.held for proxy in proxies))
        for number in range(3):
            client.register_module(module(f"acme.Later{number}"))
        patient(lambda: section(a)["newest"] >= section(b)["applied"])
        for proxy in proxies:
            proxy.hold = b""
            proxy.cut()
        patient(lambda: section(a)["error"])
        for proxy in proxies:
            proxy.mend()
        in_step(b, a)
        assert shown(a.path) == shown(b.path)
        assert list(shown(a.path)) == list(shown(b.path))


def test_a_daemon_that_was_killed_between_transaction_and_apply_answers_as_before(tmp_path: Path) -> None:
    """The transaction goes through, and its reply is held back until the daemon is killed."""
    with etcd(tmp_path / "etcd") as cluster, lossy(cluster.urls[0]) as proxy:
        with served_at(tmp_path / "a", proxy.url) as a, a.peer(b"c" * 16) as peer:
            (done,) = peer.ask(registration(1, module("acme.One")))
            assert isinstance(done, Done)
            proxy.is_mute = True
            peer.send(registration(2, module("acme.One", estimated_duration=2), 1))
            patient(lambda: head_codec.load(cluster.keys(_HEAD)[_HEAD]).number == 2)
            a.kill()
        assert shown(tmp_path / "a")["acme.One"][1] == 1
        proxy.is_mute = False
        with served_at(tmp_path / "a", proxy.url) as a, a.peer(b"c" * 16) as peer:
            (again,) = peer.ask(registration(2, module("acme.One", estimated_duration=2), 1))
            assert isinstance(again, Done)
            assert shown(a.path)["acme.One"][1] == 2
    assert violations(tmp_path / "a") == []


def test_a_stop_carries_out_the_change_that_is_under_way(tmp_path: Path) -> None:
    """The transaction goes through, and its reply comes after the stop has begun."""
    with etcd(tmp_path / "etcd") as cluster, lossy(cluster.urls[0]) as proxy:
        with served_at(tmp_path / "a", proxy.url) as a, a.peer() as peer:
            (done,) = peer.ask(registration(1, module("acme.One")))
            assert isinstance(done, Done)
            proxy.is_mute = True
            peer.send(registration(2, module("acme.One", estimated_duration=2), 1))
            patient(lambda: head_codec.load(cluster.keys(_HEAD)[_HEAD]).number == 2)
            os.kill(a.pid, signal.SIGTERM)
            patient(lambda: not (a.path / "writer.sock").exists())
            proxy.is_mute = False
            answer = peer.receive()
            assert isinstance(answer, Done), answer
            assert a.process.wait() == 0
        assert shown(tmp_path / "a")["acme.One"][1] == 2
    assert violations(tmp_path / "a") == []


@pytest.mark.full
@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_may_be_repeated_after_the_cluster_was_not_available(tmp_path: Path, is_async: bool) -> None:
    """As the error says: with the same client. What has landed counts as the answer."""

    def register(folder: Path, changed: ModuleInfo) -> int:
        async def twice() -> int:
            async with AsyncWriterClient(folder) as client:
                with pytest.raises(errors.ClusterUnavailableError, match="same client"), opened(folder):
                    await client.register_module(changed, expected_version=1)
                return await client.register_module(changed, expected_version=1)

        if is_async:
            return asyncio.run(twice())
        with WriterClient(folder) as client:
            with pytest.raises(errors.ClusterUnavailableError, match="same client"), opened(folder):
                client.register_module(changed, expected_version=1)
            return client.register_module(changed, expected_version=1)

    with etcd(tmp_path / "etcd") as cluster, host(tmp_path / "a", cluster) as a:
        with a.client() as client:
            client.register_module(module("acme.One"))
        register(a.path, module("acme.One", estimated_duration=9))
        assert shown(a.path)["acme.One"][1] == 2


@pytest.mark.full
def test_a_change_that_this_host_cannot_show_in_time_is_made_once(tmp_path: Path) -> None:
    """Its client is told that it may have been made. The same request again is answered, and not carried out again."""
    with ExitStack() as stack:
        cluster = stack.enter_context(etcd(tmp_path / "etcd"))
        a = stack.enter_context(host(tmp_path / "a", cluster))
        b = stack.enter_context(host(tmp_path / "b", cluster))
        at_a = stack.enter_context(a.client())
        at_a.register_module(module("acme.One"))
        in_step(a, b)
        request = registration(1, module("acme.One", estimated_duration=9))
        with opened(b.path):  # its LMDB cannot be written meanwhile
            peer = stack.enter_context(b.peer(b"c" * 16))
            peer.send(request)
            failed = peer.receive()
            assert isinstance(failed, Failed)
        in_step(a, b)
        at_a.register_module(module("acme.One", estimated_duration=5), expected_version=2)
        in_step(a, b)
        with b.peer(b"c" * 16) as again:
            again.send(request)
            assert isinstance(again.receive(), Done)
        in_step(a, b)
        assert shown(a.path)["acme.One"][1] == 3


def test_a_full_quota_is_told_by_name_and_nothing_is_lost(tmp_path: Path) -> None:
    """What an operator does then is docs/cluster.md's remedy: compact, defragment, disarm."""
    with ExitStack() as stack:
        quota = "--quota-backend-bytes", str(8 * 1024 * 1024)
        cluster = stack.enter_context(etcd(tmp_path / "etcd", options=quota))
        a = stack.enter_context(host(tmp_path / "a", cluster))
        client = stack.enter_context(a.client())
        client.register_module(module("acme.One"))
        with suppress(HTTPError):
            while True:
                cluster.put(b"/others", bytes(1024 * 1024))
        with pytest.raises(errors.ClusterFullError, match="disarm"):
            client.register_module(module("acme.Two"))
        cluster.compact()
        cluster.post("/v3/maintenance/defragment", {})
        for alarm in cluster.post("/v3/maintenance/alarm", {"action": "GET"})["alarms"]:
            cluster.post("/v3/maintenance/alarm", {"action": "DEACTIVATE", **alarm})
        client.register_module(module("acme.Two"))
        assert list(shown(a.path)) == ["acme.One", "acme.Two"]
    assert violations(tmp_path / "a") == []


class Counter(threading.Thread):
    """A client that counts a module up: each acknowledged step is there, none twice."""

    def __init__(self, served: Served, name: str, steps: int) -> None:
        super().__init__(daemon=True)
        self.served, self.name_of_module, self.steps = served, name, steps
        self.acknowledged = 0
        self.failures: list[str] = []

    def run(self) -> None:
        try:
            with WriterClient(self.served.path, timeout=30) as client:
                while self.acknowledged < self.steps:
                    self._step(client)
        except Exception as error:
            self.failures.append(repr(error))

    def _step(self, client: WriterClient) -> None:
        info = module(self.name_of_module, estimated_duration=self.acknowledged + 1)
        try:
            client.register_module(info, expected_version=self.acknowledged)
        except ConflictError as error:
            if error.current_version != self.acknowledged + 1:
                self.failures.append(repr(error))
                self.acknowledged = self.steps
                return
        except RegistryError:
            return  # not acknowledged: the same call again
        self.acknowledged += 1


def count(hosts: list[Served], steps: int) -> list[Counter]:
    return [Counter(served, f"acme.Count{number}", steps) for number, served in enumerate(hosts)]


def agree(hosts: list[Served], counters: list[Counter]) -> None:
    """Every acknowledged step is there, none twice, and every host passed through the same revisions in one order."""
    in_step(*hosts)
    found = [shown(served.path) for served in hosts]
    assert all(one == found[0] for one in found)
    assert list(found[0]) == list(found[-1])
    for counter in counters:
        assert counter.failures == []
        info, version, _ = found[0][counter.name_of_module]
        assert version == info.estimated_duration == counter.steps
    orders = [history(served) for served in hosts]
    newest = max(order[-1][0] for order in orders)
    for order in orders:
        revisions = [revision for revision, _ in order]
        assert revisions == sorted(revisions)
        assert order[-1][0] == newest
    known: dict[int, list[Any]] = {}
    for order in orders:
        for revision, what in order:
            assert known.setdefault(revision, what) == what
    for served in hosts:
        assert violations(served.path) == []


def history(served: Served) -> list[tuple[int, list[Any]]]:
    """(global revision, what it changed), in the order in which this host's commits showed it."""
    with Registry(served.path) as registry, registry.snapshot() as snapshot:
        found: list[tuple[int, int, str, int]] = []
        for name in snapshot:
            for kept in (snapshot.describe(name), *snapshot.history(name)):
                of = kept.provenance
                if of.global_revision:
                    found.append((of.revision, of.global_revision, name, of.version))
    by_revision: dict[int, list[Any]] = {}
    for _, revision, name, version in sorted(found):
        by_revision.setdefault(revision, []).append((name, version))
    return list(by_revision.items())


def test_i34_every_host_passes_through_the_same_global_revisions(tmp_path: Path) -> None:
    """Three hosts count at once, and each sees the others' steps in one order, through one that is cut off."""
    with etcd(tmp_path / "etcd") as cluster, ExitStack() as stack:
        proxy = stack.enter_context(lossy(cluster.urls[0]))
        hosts = [stack.enter_context(host(tmp_path / name, cluster)) for name in ("a", "b")]
        hosts.append(stack.enter_context(served_at(tmp_path / "c", proxy.url)))
        counters = count(hosts, 14)
        for counter in counters:
            counter.start()
        proxy.cut()
        proxy.mend()
        proxy.lose[b"success"] = 3
        for counter in counters:
            counter.join()
        agree(hosts, counters)


@pytest.mark.full
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(5))
def test_three_nodes_and_three_hosts_under_kills(tmp_path: Path, seed: int) -> None:
    """etcd's nodes are killed and stopped, daemons are killed, and revisions are compacted, while clients count."""
    chance = random.Random(seed)
    with etcd(tmp_path / "etcd", 3) as cluster, ExitStack() as stack:
        folders = [tmp_path / name for name in ("a", "b", "c")]
        hosts = [stack.enter_context(host(folder, cluster)) for folder in folders]
        counters = count(hosts, 15)
        for counter in counters:
            counter.start()
        for _ in range(4):
            fault = chance.choice(["node", "stop", "daemon", "compact"])
            number = chance.randrange(3)
            if fault == "node":
                cluster.nodes[number].kill()
                cluster.nodes[number].start()
                cluster.wait()
            elif fault == "stop":
                stop(cluster.nodes[number])
                patient(lambda: any(counter.acknowledged for counter in counters))
                threading.Event().wait(3.5)  # longer than a node may be silent
                resume(cluster.nodes[number])
            elif fault == "daemon":
                hosts[number].kill()
                hosts[number] = stack.enter_context(host(folders[number], cluster))
            else:
                cluster.compact()
        for counter in counters:
            counter.join()
        agree(hosts, counters)
