"""Guarded rollouts in a cluster: begun on any host, steered by the leader, seen on every host."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from dspy_registry import LabelUpdate, Registry
from dspy_registry.registry_store.errors import ClusterMembershipError
from dspy_registry.registry_store.rollout import MIN_CALLS
from dspy_registry.writer.cluster.global_rows import part_key
from dspy_registry.writer.daemon import lifecycle
from dspy_registry.writer.daemon.rollouts import keep_rollouts
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module
from tests.support.etcd import EtcdCluster, etcd, host, in_step, needs_etcd, patient, section, serve_cluster
from tests.support.rollout_daemon import NAME, PLAN, Traffic, facts, set_clock

pytestmark = needs_etcd
LEADER = b"/dspy-registry/d/leader"
RECORDS = b"/dspy-registry/d/r/"


def serve_by_clock(path: str, urls: list[str], clock: str) -> None:
    """A host that looks very often, and whose rollouts go by the time in a file."""
    told = partial(keep_rollouts, clock=lambda: float(Path(clock).read_text(encoding="ascii")), every=0.05)
    lifecycle.keep_rollouts = told  # type: ignore[assignment]
    serve_cluster(path, urls)


def named(served: Served) -> dict[int, int]:
    with Registry(served.path) as registry:
        return registry.labels(NAME)["live"].versions


@contextmanager
def led(folder: Path, clock: Path) -> Iterator[tuple[EtcdCluster, Served, Served]]:
    """A cluster of two hosts, the one that leads first."""
    with (
        etcd(folder / "etcd") as cluster,
        daemon_of(__name__, "serve_by_clock", folder / "a", cluster.urls, str(clock)) as a,
        daemon_of(__name__, "serve_by_clock", folder / "b", cluster.urls, str(clock)) as b,
    ):
        patient(lambda: section(a)["leads"] or section(b)["leads"])
        yield (cluster, a, b) if section(a)["leads"] else (cluster, b, a)


def test_the_leader_steers_what_was_begun_on_any_host(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, time.time())
    with led(tmp_path, clock) as (cluster, leader, other), other.client() as client:
        for milliseconds in (100, 200, 300):
            client.register_module(module(NAME, estimated_duration=milliseconds))
        client.set_label(NAME, "live", 1)
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        in_step(other, leader)
        assert named(leader) == named(other) == {1: 9000, 2: 1000}
        Traffic(leader.path, clock, (0, 100.0), (0, 100.0)).until(lambda: facts(client)["state"] == "done")
        in_step(leader, other)
        assert named(leader) == named(other) == {2: 10_000}
        client.set_label(NAME, "live", 1)
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        in_step(other, leader)
        leader.kill()
        cluster.post("/v3/lease/revoke", {"ID": str(cluster.lease(LEADER))})
        patient(lambda: section(other)["leads"])
        Traffic(other.path, clock, (0, 100.0), (9, 100.0)).until(lambda: facts(client)["state"] == "returned")
        assert named(other) == {1: 10_000}
    for name in ("a", "b"):
        assert violations(tmp_path / name) == []


def test_steps_take_their_time_on_the_leaders_clock(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, time.time() + 10 * PLAN.every)  # ahead of the host that the rollout is begun on
    with led(tmp_path, clock) as (_, leader, other), other.client() as client:
        for milliseconds in (100, 200):
            client.register_module(module(NAME, estimated_duration=milliseconds))
        client.set_label(NAME, "live", 1)
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        in_step(other, leader)
        calls = Traffic(leader.path, clock, (0, 100.0), (0, 100.0), seconds=0.0)
        calls.until(lambda: facts(client)["errors"]["new_calls"] >= MIN_CALLS)
        assert facts(client)["step"] == 0
        client.steer_rollout(NAME, "pause", label="live")
        set_clock(clock, float(clock.read_text(encoding="ascii")) + 10 * PLAN.every)
        client.steer_rollout(NAME, "resume", label="live")
        before = facts(client)["errors"]["new_calls"]
        calls.until(lambda: facts(client)["errors"]["new_calls"] > before)
        assert facts(client)["step"] == 0
        calls = Traffic(leader.path, clock, (0, 100.0), (0, 100.0))
        calls.until(lambda: facts(client)["step"] == 1)


@pytest.mark.parametrize("value", [b"of another release", "another label's"])
def test_a_rollout_that_this_release_cannot_read_is_set_aside_alone(tmp_path: Path, value: bytes | str) -> None:
    key = RECORDS + b"rollouts/" + part_key(NAME, "live")
    with etcd(tmp_path / "etcd") as cluster, host(tmp_path / "a", cluster) as a, a.client() as client:
        for name in (NAME, "acme.Other"):
            for milliseconds in (100, 200):
                client.register_module(module(name, estimated_duration=milliseconds))
            client.set_labels([LabelUpdate(name, label, 1) for label in ("live", "next")])
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        client.steer_rollout(NAME, "pause", label="live")
        client.start_rollout(NAME, 2, label="next", plan=PLAN)
        of_next = cluster.keys(RECORDS + b"rollouts/" + part_key(NAME, "next")).popitem()[1]
        sound = cluster.keys(key)[key]
        cluster.put(key, value if isinstance(value, bytes) else of_next)
        patient(lambda: set(section(a)["set_aside"]) == {f"rollouts/{NAME}@live"})
        with pytest.raises(ClusterMembershipError, match="could not take over"):
            client.steer_rollout(NAME, "abort", label="live")
        client.start_rollout("acme.Other", 2, label="live", plan=PLAN)
        client.steer_rollout(NAME, "abort", label="next")
        with Registry(a.path) as registry:
            assert registry.labels(NAME)["live"].versions == {1: 9000, 2: 1000}
        cluster.put(key, sound)
        patient(lambda: not section(a)["set_aside"])
        client.steer_rollout(NAME, "abort", label="live")
        assert named(a) == {1: 10_000}
    assert violations(tmp_path / "a") == []
