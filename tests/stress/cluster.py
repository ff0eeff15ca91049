"""Histories of a cluster: clients on three hosts change what is global while etcd, the network and daemons fail.

At the end every acknowledged change is there once, in the order in which it was acknowledged. No refused one is there.
Every host shows the same, never went back meanwhile, and `check` is content.
"""

from __future__ import annotations

import random
import traceback
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dspy_registry import Registry, RegistryError, Snapshot, WriterClient
from dspy_registry.writer import failpoints
from dspy_registry.writer.cluster.etcd_json import range_end
from dspy_registry.writer.cluster.keys import head_codec
from tests.conftest import violations
from tests.stress import cluster_truth
from tests.stress.cluster_clients import SHARED, Client, Watcher
from tests.stress.cluster_hosts import Behind, anywhere, compact, free_space, pause, three_hosts
from tests.stress.cluster_truth import Shown, Truth
from tests.stress.faults import Case, Fault, Plan
from tests.support.daemon_process import module
from tests.support.etcd import ETCD, EtcdCluster, b64, etcd, patient, resume, stop

_WATCHED = b"/dspy-registry/d/"
_QUOTA = 24 * 1024 * 1024  # bytes
_LEAST_CALLS = 20  # that end with an acknowledgement, before the first fault and at the end
_FAULTS = (2, 4)  # of one round


@dataclass
class Round:
    """What a round runs on. `chance` is for its faults."""

    cluster: EtcdCluster
    hosts: list[Behind]
    truth: Truth
    chance: random.Random
    clients: list[Client] = field(default_factory=list)
    done: list[str] = field(default_factory=list)

    @property
    def host(self) -> Behind:
        return self.chance.choice(self.hosts)

    def acknowledged(self) -> int:
        return sum(one.outcome == cluster_truth.DONE for client in self.clients for one in list(client.told))


def _node_killed(on: Round) -> None:
    node = on.chance.choice(on.cluster.nodes)
    node.kill()
    pause(on.chance, 1.0)
    node.start()


def _node_stopped(on: Round) -> None:
    node = on.chance.choice(on.cluster.nodes)
    stop(node)
    pause(on.chance, 4.0)  # a watch may be silent for 3 s
    resume(node)


def _majority_stopped(on: Round) -> None:
    nodes = on.chance.sample(on.cluster.nodes, 2)
    for node in nodes:
        stop(node)
    pause(on.chance, 2.0)
    for node in nodes:
        resume(node)


def _cut_off(on: Round) -> None:
    host = on.host
    host.cut()
    pause(on.chance, 4.0)
    host.mend()


def _cut_off_beyond_compaction(on: Round) -> None:
    host = on.host
    host.cut()
    pause(on.chance, 2.0)
    _compacted(on)
    host.mend()


def _one_way(on: Round) -> None:
    host = on.host
    for proxy in host.proxies:
        proxy.is_mute = True
    pause(on.chance, 3.0)
    host.mend()


def _replies_lost(on: Round) -> None:
    for proxy in on.host.proxies:
        proxy.lose[b"success"] = on.chance.randint(1, 4)


def _daemon_killed(on: Round) -> None:
    host = on.host
    host.kill()
    pause(on.chance, 1.0)
    host.start()


def _daemon_killed_at_a_point(on: Round) -> None:
    host = on.host
    points = [*failpoints.OF_A_CLUSTER, *failpoints.NAMES]
    host.start_again(f"{on.chance.choice(points)}=kill@{on.chance.randint(1, 8)}")
    pause(on.chance, 2.0)
    host.start_again()


def _compacted(on: Round) -> None:
    """All that etcd has, once the judge has seen what it needs of it."""
    newest = {"key": b64(_WATCHED), "range_end": b64(range_end(_WATCHED)), "sort_order": "DESCEND"}
    found = anywhere(on.cluster, "/v3/kv/range", {**newest, "sort_target": "MOD", "limit": "1"})
    last = int(found["kvs"][0]["mod_revision"])
    patient(lambda: on.truth.seen >= last)
    revision = int(found["header"]["revision"])
    on.truth.seen = max(on.truth.seen, revision)
    compact(on.cluster, revision)


def _clock_jumped(on: Round) -> None:
    on.host.jump(on.chance.choice((-86_400, -3_600, -60, 60, 3_600, 86_400)))


def _quota_filled(on: Round) -> None:
    with suppress(OSError):
        for number in range(2 * _QUOTA // (1024 * 1024)):
            on.cluster.put(b"/others%d" % number, bytes(1024 * 1024))
    pause(on.chance, 1.0)
    anywhere(on.cluster, "/v3/kv/deleterange", {"key": b64(b"/others"), "range_end": b64(b"/othert")})
    _compacted(on)
    free_space(on.cluster)


FAULTS: dict[str, Callable[[Round], None]] = {
    "node killed": _node_killed,
    "node stopped": _node_stopped,
    "majority stopped": _majority_stopped,
    "host cut off": _cut_off,
    "host cut off beyond the compaction": _cut_off_beyond_compaction,
    "replies go nowhere": _one_way,
    "replies lost": _replies_lost,
    "daemon killed": _daemon_killed,
    "daemon killed at a point": _daemon_killed_at_a_point,
    "compacted": _compacted,
    "clock jumped": _clock_jumped,
    "quota filled": _quota_filled,
}


def play(room: Path, chance: random.Random, done: list[str]) -> list[str]:
    """One round: what is wrong. The faults that were done go into `done`."""
    options = ("--quota-backend-bytes", str(_QUOTA))
    with ExitStack() as stack:
        cluster = stack.enter_context(etcd(room / "etcd", 3, options))
        truth = Truth(cluster.urls)
        stack.enter_context(truth.following())
        hosts = stack.enter_context(three_hosts(room, cluster))
        on = Round(cluster, hosts, truth, chance, done=done)
        watchers = [Watcher(host.folder) for host in hosts]
        _run(on, watchers, stack)
        problems = [*truth.problems, *(one for part in (*on.clients, *watchers) for one in part.problems)]
        told = [one for client in on.clients for one in client.told]
        problems += cluster_truth.judged(truth.versions, told)
        for host, watcher in zip(hosts, watchers, strict=True):
            problems += cluster_truth.went_back(host.folder.name, watcher.seen)
            kept = _kept(host.folder)
            problems += cluster_truth.differing(truth.versions, host.folder.name, kept)
            problems += cluster_truth.out_of_order(host.folder.name, _revisions(host.folder))
        problems += cluster_truth.agreed({host.folder.name: _shown(host.folder) for host in hosts})
        for host in hosts:
            status = host.served.end()
            problems += [f"the daemon of {host.folder.name} ended with {status}"] if status else []
            problems += [f"{host.folder.name}: {one}" for one in violations(host.folder)]
    return problems


def _run(on: Round, watchers: list[Watcher], stack: ExitStack) -> None:
    on.clients = [Client(on.hosts[number % 3].folder, number, random.Random(on.chance.random())) for number in range(6)]
    for thread in (*watchers, *on.clients):
        stack.callback(thread.end)
        thread.start()
    patient(lambda: on.acknowledged() >= _LEAST_CALLS)
    for name in on.chance.sample(list(FAULTS), on.chance.randint(*_FAULTS)):
        FAULTS[name](on)
        on.done.append(name)
    try:
        _settle(on)
    except AssertionError as error:
        told = "; ".join(f"{host.folder.name} says {host.says()}" for host in on.hosts)
        raise AssertionError(f"{error}: {told}") from error
    for thread in (*on.clients, *watchers):
        thread.end()


def _settle(on: Round) -> None:
    """All is mended, clients go on for a while and end, and every host shows what the cluster has."""
    on.cluster.wait()
    before = on.acknowledged()
    patient(lambda: on.acknowledged() >= before + _LEAST_CALLS)
    for client in on.clients:
        client.end()
    for number, host in enumerate(on.hosts):  # a change of each host clears what its batches have left
        patient(lambda number=number, host=host: _has_changed(host, f"stress.End{number}"))
    head = anywhere(on.cluster, "/v3/kv/range", {"key": b64(_WATCHED + b"head")})["kvs"][0]
    changes = head_codec.load(b64decode(head["value"])).number
    patient(lambda: on.truth.seen >= int(head["mod_revision"]))
    for host in on.hosts:
        patient(lambda host=host: host.has_applied(changes))


def _has_changed(host: Behind, name: str) -> bool:
    try:
        with WriterClient(host.folder, timeout=15) as client:
            client.register_module(module(name))
    except RegistryError:
        return False
    return True


def _kept(folder: Path) -> dict[str, dict[int, Shown]]:
    """All versions that a host keeps of what clients registered."""
    found: dict[str, dict[int, Shown]] = {}
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        for name in snapshot:
            if name.startswith("stress."):
                kept = (snapshot.describe(name), *snapshot.history(name))
                found[name] = {
                    one.provenance.version: Shown(one.info.estimated_duration, one.provenance.global_revision)
                    for one in kept
                }
    return found


def _revisions(folder: Path) -> list[tuple[int, int]]:
    """The host's own revision and the global one of each version that it keeps.

    A label may bring back a version that this host had missed, long after it was in force: of names with labels, the
    version in force alone counts.
    """
    found = []
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        for name in snapshot:
            if name.startswith("stress."):
                past = () if name in SHARED else snapshot.history(name)
                kept = (snapshot.describe(name), *past)
                found += [(one.provenance.revision, one.provenance.global_revision) for one in kept]
    return found


def _shown(folder: Path) -> list[Any]:
    """What a host shows: modules in their order, aliases, policies, labels and the records that they name."""
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        names = [name for name in snapshot if name.startswith("stress.")]
        kept = {name: snapshot.describe(name) for name in names}
        modules = [(name, one.info.estimated_duration, one.provenance.version) for name, one in kept.items()]
        aliases = sorted((alias, meaning.name) for alias, meaning in snapshot.aliases().items())
        policies = [(name, registry.policy(name).max_concurrency) for name in sorted(set(names).intersection(SHARED))]
        labels = [
            (name, label, one.versions, [_content(snapshot, name, version) for version in one.versions])
            for name in sorted(set(names).intersection(SHARED))
            for label, one in sorted(snapshot.labels(name).items())
        ]
        return [*modules, *aliases, *policies, *labels]


def _content(snapshot: Snapshot, name: str, version: int) -> float | None:
    kept = snapshot.version_record(name, version)
    return None if kept is None else kept.info.estimated_duration


def _tries(plan: Plan) -> Iterator[Case]:
    if ETCD is None:
        yield Case("all", skipped="etcd is not installed")
        return
    for key in plan.cases():
        room = plan.folder(f"round-{key}")
        room.mkdir(parents=True)
        done: list[str] = []
        try:
            problems = play(room, plan.chance(key), done)
        except Exception as error:
            places = [f"{place.name}:{place.lineno}" for place in traceback.extract_tb(error.__traceback__)]
            problems = [f"{type(error).__name__}: {error} in {', '.join(places)}"]
        yield Case(key, tuple(f"{one} (after {', '.join(done)})" for one in problems), "rounds")
        plan.folder(f"round-{key}")


FAULT = Fault(
    "cluster",
    "etcd nodes killed, stopped, compacted, full; hosts cut off; daemons killed, also between transaction and apply",
    "rounds",
    200,
    5,
    _tries,
)
