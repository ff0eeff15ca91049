"""Guarded rollouts in a cluster: begun on any host, steered by the leader, seen on every host."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest

from dspy_registry import Registry
from dspy_registry.registry_store.layout import LABELS
from dspy_registry.writer.cluster.records import KINDS
from dspy_registry.writer.daemon import lifecycle
from dspy_registry.writer.daemon.rollouts import keep_rollouts
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module
from tests.support.etcd import etcd, in_step, needs_etcd, patient, section, serve_cluster
from tests.support.rollout_daemon import NAME, PLAN, Traffic, facts, set_clock

pytestmark = [
    needs_etcd,
    pytest.mark.skipif(LABELS not in KINDS, reason="labels are of each host, so rollouts are refused"),
]
LEADER = b"/dspy-registry/d/leader"


def serve_by_clock(path: str, urls: list[str], clock: str) -> None:
    """A host that looks very often, and whose rollouts go by the time in a file."""
    told = partial(keep_rollouts, clock=lambda: float(Path(clock).read_text(encoding="ascii")), every=0.05)
    lifecycle.keep_rollouts = told  # type: ignore[assignment]
    serve_cluster(path, urls)


def named(served: Served) -> dict[int, int]:
    with Registry(served.path) as registry:
        return registry.labels(NAME)["live"].versions


def test_the_leader_steers_what_was_begun_on_any_host(tmp_path: Path) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, time.time())
    with etcd(tmp_path / "etcd") as cluster:
        arguments = (cluster.urls, str(clock))
        with (
            daemon_of(__name__, "serve_by_clock", tmp_path / "a", *arguments) as a,
            daemon_of(__name__, "serve_by_clock", tmp_path / "b", *arguments) as b,
        ):
            patient(lambda: section(a)["leads"] or section(b)["leads"])
            leader, other = (a, b) if section(a)["leads"] else (b, a)
            with other.client() as client:
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
