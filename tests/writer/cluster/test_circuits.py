"""Circuits of one host are known on all: what opens, what closes, and what a host does not understand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import UsageReporter
from dspy_registry.writer.cluster.circuits import GlobalCircuit, _codec
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module
from tests.support.etcd import EtcdCluster, etcd, host, in_step, needs_etcd, patient, section
from tests.support.health_helpers import NAME, fail, states, unhealthy
from tests.support.lossy_proxy import lossy
from tests.support.reporting import SELDOM

pytestmark = needs_etcd
CIRCUITS = b"/dspy-registry/d/c/"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd(tmp_path / "etcd") as found:
        yield found


@pytest.fixture
def hosts(tmp_path: Path, cluster: EtcdCluster) -> Iterator[list[Served]]:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b:
        for served in (a, b):
            patient(lambda served=served: len(section(served)["hosts"]) == 2)
        yield [a, b]
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


def test_what_fails_on_one_host_is_open_on_every_host(hosts: list[Served]) -> None:
    a, b = hosts
    with UsageReporter(a.path, interval=SELDOM) as reporter:
        fail(reporter)
    patient(lambda: states(b.path) == {(NAME, 1): "open"})
    (there,) = unhealthy(b.path)
    assert (there.failures, there.last_kind) == (5, "unavailable")
    assert 0 < there.until - time.time() < 7
    with b.client() as client:
        assert client.status().sections["health"]["outcomes"] == 0


@pytest.mark.full
def test_a_reset_on_any_host_closes_it_on_all_and_removes_the_key(hosts: list[Served], cluster: EtcdCluster) -> None:
    a, b = hosts
    with a.client() as at_a, b.client() as at_b:
        at_a.open_circuit(NAME, 600.0)
        patient(lambda: states(b.path) == {(NAME, 1): "open"})
        assert len(cluster.keys(CIRCUITS)) == 1
        at_b.reset_circuit(NAME)
        patient(lambda: states(a.path) == {})
        assert states(b.path) == {}
        patient(lambda: not cluster.keys(CIRCUITS))
        at_b.open_circuit(NAME, 600.0, 1)  # the same again, from the other side
        patient(lambda: states(a.path) == {(NAME, 1): "open"})
        at_b.open_circuit(NAME, 300.0, 1)  # its own opening may be shortened
        patient(lambda: unhealthy(a.path)[0].until - time.time() < 301)
        at_b.reset_circuit(NAME, 1)
        patient(lambda: states(a.path) == {} and not cluster.keys(CIRCUITS))


@pytest.mark.full
def test_a_key_that_only_goes_closes_nothing(hosts: list[Served], cluster: EtcdCluster) -> None:
    a, b = hosts
    with a.client() as at_a:
        at_a.open_circuit(NAME, 600.0)
        patient(lambda: states(b.path))
        (key,) = cluster.keys(CIRCUITS)
        cluster.delete(key)
        at_a.register_module(module("acme.Behind"))
        in_step(a, b)
        assert states(a.path) == states(b.path) == {(NAME, 1): "open"}


@pytest.mark.full
def test_a_late_host_counts_no_longer_than_the_lease(tmp_path: Path, hosts: list[Served], cluster: EtcdCluster) -> None:
    with hosts[0].client() as at_a:
        at_a.open_circuit(NAME, 600.0)
    with host(tmp_path / "late", cluster) as late:
        patient(lambda: states(late.path) == {(NAME, 1): "open"})
        assert 500 < unhealthy(late.path)[0].until - time.time() < 602
    lease = int(cluster.post("/v3/lease/grant", {"TTL": "30"})["ID"])
    value = _codec.dump(GlobalCircuit(600.0, 5, "timeout"))
    cluster.put(CIRCUITS + b"dspy.ReAct/1/0123456789abcdef", value, lease)
    with host(tmp_path / "later", cluster) as later:
        patient(lambda: ("dspy.ReAct", 1) in states(later.path))
        found = {entry.name: entry.until for entry in unhealthy(later.path)}
        assert found["dspy.ReAct"] - time.time() < 11


@pytest.mark.full
def test_what_is_not_understood_is_told_and_breaks_nothing(hosts: list[Served], cluster: EtcdCluster) -> None:
    a, b = hosts
    value = _codec.dump(GlobalCircuit(600.0))
    odd = {
        b"dspy.Predict/0123456789abcdef": value,
        b"dspy.Predict/x/0123456789abcdef": value,
        b"dspy.Predict/1/0123456789abcdef": b"of another release",
        b"dspy.Predict/2/0123456789abcdef": _codec.dump(GlobalCircuit(float("nan"))),
        b"\xff/1/0123456789abcdef": value,
        b"": value,
    }
    for key, told in odd.items():
        cluster.put(CIRCUITS + key, told)
    cluster.put(CIRCUITS + b"acme.Nobody/1/0123456789abcdef", value)  # sound, of a module that nobody has
    patient(lambda: section(b)["errors"] == len(odd))
    assert section(b)["error"] == ""
    with a.client() as at_a:
        at_a.register_module(module("acme.Behind"))
        at_a.open_circuit("acme.Behind", 600.0)
    patient(lambda: states(b.path) == {("acme.Behind", 1): "open"})
    for key in odd:
        cluster.delete(CIRCUITS + key)
    patient(lambda: section(b)["errors"] == 0)


@pytest.mark.full
def test_a_host_that_was_cut_off_tells_then(tmp_path: Path, cluster: EtcdCluster) -> None:
    with (
        lossy(cluster.urls[0]) as proxy,
        host(tmp_path / "b", cluster) as b,
        daemon_of("tests.support.etcd", "serve_cluster", tmp_path / "a", [proxy.url]) as a,
        a.client() as at_a,
    ):
        patient(lambda: len(section(a)["hosts"]) == 2)
        proxy.cut()
        at_a.open_circuit(NAME, 600.0)
        assert states(a.path) == {(NAME, 1): "open"}
        proxy.mend()
        patient(lambda: states(b.path) == {(NAME, 1): "open"})
