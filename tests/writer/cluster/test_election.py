"""One host leads, another takes over, and who has lost the lead changes nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Policy, Registry, RegistryWriter
from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.rollout_rows import load_rollouts
from dspy_registry.writer.cluster.attach import attach_cluster
from dspy_registry.writer.cluster.membership import stage_join
from dspy_registry.writer.cluster.options import ClusterOptions
from dspy_registry.writer.daemon.lifecycle import Daemon
from dspy_registry.writer.policies import set_policy
from dspy_registry.writer.rollouts import RolloutRequest, steer
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module, serve
from tests.support.etcd import EtcdCluster, etcd, host, in_step, needs_etcd, patient, section
from tests.support.health_helpers import NAME
from tests.support.processes import requests, say

pytestmark = needs_etcd
LEADER = b"/dspy-registry/d/leader"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd(tmp_path / "etcd") as found:
        yield found


def serve_steering(path: str, urls: list[str]) -> None:
    """A daemon that steers when it is told: [limit, term], with 0 for its own term. It says what came of it."""

    def extend(served: Daemon) -> None:
        cluster = attach_cluster(served, ClusterOptions(endpoints=tuple(urls)))
        loop = asyncio.get_running_loop()

        async def steer(limit: int, term: int) -> str:
            def stage(draft: Any) -> None:
                set_policy(draft, NAME, Policy(max_concurrency=limit))

            election, keys = cluster.election, cluster.keys
            try:
                await cluster.origin.submit(stage, {keys.leader: term or election.term})
            except RegistryError as error:
                return type(error).__name__
            return "done"

        def listen() -> None:
            for limit, term in requests():
                say(asyncio.run_coroutine_threadsafe(steer(limit, term), loop).result())

        threading.Thread(target=listen, daemon=True).start()

    serve(path, extensions=[extend])


def leaders(hosts: list[Served]) -> list[Served]:
    return [served for served in hosts if section(served)["leads"]]


def limit(served: Served) -> int | None:
    with Registry(served.path) as registry:
        return registry.policy(NAME).max_concurrency


def test_only_the_leader_steers_and_another_takes_over(tmp_path: Path, cluster: EtcdCluster) -> None:
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(daemon_of(__name__, "serve_steering", tmp_path / name, cluster.urls))
            for name in ("a", "b", "c")
        ]
        (first,) = patient(lambda: leaders(hosts))
        term = cluster.modified(LEADER)
        assert first.process.ask([1, term]) == "done"
        in_step(*hosts)
        assert [limit(served) for served in hosts] == [1, 1, 1]
        for served in hosts:  # with a term that is over, nobody steers, not even who leads
            assert served.process.ask([9, term - 1]) == "LostLeadError"
        first.kill()
        cluster.post("/v3/lease/revoke", {"ID": str(cluster.lease(LEADER))})  # its end, sooner
        others = [served for served in hosts if served is not first]
        (second,) = patient(lambda: leaders(others))
        assert second.process.ask([9, term]) == "LostLeadError"
        assert second.process.ask([2, 0]) == "done"
        in_step(*others)
        assert [limit(served) for served in others] == [2, 2]
        assert {section(served)["leader"] for served in others} == {section(second)["host"]}
    for name in ("a", "b", "c"):
        assert violations(tmp_path / name) == []


@pytest.mark.full
def test_a_leader_that_ends_gives_way_at_once_and_one_that_was_killed_goes_on(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    with host(tmp_path / "a", cluster) as a:
        patient(lambda: section(a)["leads"])
        a.kill()
        first = cluster.modified(LEADER)
        with host(tmp_path / "a", cluster) as again:
            patient(lambda: section(again)["leads"])
            assert cluster.modified(LEADER) > first
            again.end()
        assert cluster.keys(LEADER) == {}
    with host(tmp_path / "b", cluster) as b:
        patient(lambda: section(b)["leads"])


def test_a_rollout_of_one_host_does_not_join(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(module("acme.One"))
        writer.register_module(module("acme.One", pool_type="neural"))
        writer.set_label("acme.One", "live", 1)
        request = RolloutRequest("acme.One", "live", "begin", 2)
        writer.store.committer.commit(lambda draft: steer(draft, request))
        joined = Position("cluster", "host")
        writer.store.committer.commit(lambda draft: stage_join(draft, joined, ()))
        environment = writer.store.environment
        with environment.reading() as txn:
            assert load_rollouts(txn, environment.dbs).sound == []
