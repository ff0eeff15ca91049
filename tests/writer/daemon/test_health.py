"""Health in a real daemon: it opens circuits from what processes report, and the next daemon goes on with them."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest

from dspy_registry import (
    InvalidArgumentError,
    Policy,
    Registry,
    RegistryWriter,
    StoreError,
    UnknownModuleError,
    UsageReporter,
)
from dspy_registry.registry_store import health_file
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.health_file import HEALTH_FILE, HealthFile, ensure_health_file
from dspy_registry.registry_store.protocol import OpenCircuit, ResetCircuit
from dspy_registry.writer.daemon.health import HealthKeeper
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.store import Store
from tests.support.client_kinds import Opened, either
from tests.support.daemon_process import daemon, module
from tests.support.few_files import few_files
from tests.support.forks import await_all, fork
from tests.support.health_helpers import ENOUGH, NAME, fail, states, unhealthy, until
from tests.support.processes import child, requests, run, say
from tests.support.reporting import SELDOM


def report_when_told(path: str) -> None:
    """A worker that reports failing calls when it is told how many."""
    with UsageReporter(path, interval=SELDOM) as reporter:
        for times in requests():
            fail(reporter, times)
            say("recorded")


def test_failures_of_several_processes_open_a_circuit_for_all(seeded_registry: Path) -> None:
    with (
        daemon(seeded_registry),
        child(__name__, "report_when_told", seeded_registry) as one,
        child(__name__, "report_when_told", seeded_registry) as other,
        Registry(seeded_registry) as registry,
    ):
        assert one.ask(3) == "recorded"
        until(lambda: registry.host_health.file() is not None)
        assert registry.health() == []
        assert other.ask(2) == "recorded"  # neither has seen enough by itself
        until(registry.health)
        (entry,) = registry.health()
        assert (entry.name, entry.version, entry.state, entry.last_kind) == (NAME, 1, "open", "unavailable")
        assert (entry.failures, entry.openings) == (5, 1)
        assert 3 < entry.until - time.time() < 7  # 5 s, give or take a fifth


def test_a_failure_is_sent_at_once_and_not_with_the_batch(seeded_registry: Path) -> None:
    with daemon(seeded_registry), UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        fail(reporter)
        until(lambda: states(seeded_registry))


def test_successes_belong_to_the_share(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        for _ in range(20):
            reporter.record(NAME, 5.0)
        fail(reporter)
        assert reporter.flush()
        with served.client() as client:
            until(lambda: client.status().sections["health"]["outcomes"] == 25)
        assert states(seeded_registry) == {}


def test_calls_that_say_nothing_count_as_nothing(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        for kind in ("caller", "cancelled"):
            for _ in range(10):
                reporter.record(NAME, 5.0, ok=False, error=kind)
        fail(reporter, name="acme.NobodyRegisteredThis")
        fail(reporter, version=99)
        reporter.record(NAME, 5.0)
        assert reporter.flush()
        with served.client() as client:
            section = client.status().sections["health"]
            assert (section["outcomes"], section["unhealthy"]) == (1, 0)


def test_retry_after_opens_at_once(seeded_registry: Path) -> None:
    with daemon(seeded_registry), UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        reporter.record(NAME, 5.0, ok=False, error="rate_limited", retry_after=100.0)
        until(lambda: states(seeded_registry))
        (entry,) = unhealthy(seeded_registry)
        assert 90 < entry.until - time.time() <= 100.5


def test_a_killed_daemons_circuits_are_adopted(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, served.client() as client:
        client.open_circuit(NAME, 600.0)
        before = unhealthy(seeded_registry)
        served.kill()
        assert states(seeded_registry) == {(NAME, 1): "open"}  # nobody needs the daemon to know
    with daemon(seeded_registry):
        (after,) = unhealthy(seeded_registry)
    assert after.until == pytest.approx(before[0].until, abs=1.0)
    assert (after.state, after.openings) == ("open", 1)


def test_i29_a_circuit_is_open_until_the_published_deadline_and_no_longer(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, Registry(seeded_registry) as registry:
        with served.client() as client:
            client.open_circuit(NAME, 0.5)
        known = registry.host_health.current()
        deadline = known.until(NAME, 1)
        assert known.state(NAME, 1, deadline - 1e-6) == "open"
        served.kill()  # nobody is there who could close it
        until(lambda: boot_seconds() >= deadline)
        assert registry.host_health.current().state(NAME, 1) == "half_open"
        assert registry.host_health.current().until(NAME, 1) == deadline
    with daemon(seeded_registry), Registry(seeded_registry) as registry:
        assert registry.host_health.current().until(NAME, 1) == deadline
        assert states(seeded_registry) == {(NAME, 1): "half_open"}


def test_a_list_of_another_boot_is_ignored(seeded_registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = boot_seconds()
    with monkeypatch.context() as patched:
        patched.setattr(health_file, "boot_id", lambda: "another boot")
        ensure_health_file(seeded_registry).publish([CircuitRow(NAME, 1, now, now + 600, 1, 1, 5, "timeout")])
    assert states(seeded_registry) == {}
    with daemon(seeded_registry) as served, served.client() as client:
        assert states(seeded_registry) == {}
        client.open_circuit(NAME, 600.0)
        assert unhealthy(seeded_registry)[0].openings == 1


def test_a_module_that_works_again_is_closed(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        with served.client() as client:
            client.set_policy("dspy.*", Policy(open_seconds=0.01, minimum_failures=2))
        fail(reporter, 2)
        until(lambda: states(seeded_registry) == {(NAME, 1): "half_open"})
        for _ in range(2):
            reporter.record(NAME, 1.0, began=time.monotonic())
        assert reporter.flush()
        assert states(seeded_registry) == {}


def test_a_call_of_an_older_version_counts_for_that_version(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        with served.client() as client, Registry(seeded_registry) as registry:
            client.register_module(msgspec.structs.replace(registry.get_module(NAME), estimated_duration=77))
        fail(reporter, version=1)
        until(lambda: states(seeded_registry))
        assert states(seeded_registry) == {(NAME, 1): "open"}


@either
def test_an_operator_opens_and_resets(seeded_registry: Path, connect: Opened) -> None:
    with daemon(seeded_registry), connect(seeded_registry) as client:
        client.open_circuit("Predict", 60.0)
        (entry,) = unhealthy(seeded_registry)
        assert (entry.name, entry.last_kind, entry.failures) == (NAME, "operator", 0)
        client.reset_circuit(NAME, 1)
        assert states(seeded_registry) == {}
        client.open_circuit(NAME, 60.0, 1)
        client.reset_circuit(NAME)
        assert states(seeded_registry) == {}
        with pytest.raises(UnknownModuleError):
            client.open_circuit("acme.Nothing", 60.0)
        for seconds in (0, -1.0, float("nan")):
            with pytest.raises(InvalidArgumentError):
                client.open_circuit(NAME, seconds)


def test_a_removed_file_comes_back(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, served.client() as client:
        client.open_circuit(NAME, 600.0)
        mapped = HealthFile(seeded_registry)
        (seeded_registry / HEALTH_FILE).unlink()
        until((seeded_registry / HEALTH_FILE).exists)
        until(lambda: states(seeded_registry))
        assert not mapped.is_current()
        assert mapped.word[()] != mapped.word[()]  # retired: who has it mapped opens the new one


def test_a_file_that_cannot_be_made_stops_no_daemon(seeded_registry: Path) -> None:
    (seeded_registry / HEALTH_FILE).mkdir()
    with daemon(seeded_registry) as served, UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        with served.client() as client:
            assert "error" in client.status().sections["health"]
        fail(reporter)
        with Registry(seeded_registry) as registry:
            until(registry.health)  # by the circuits of this process


def test_a_process_without_a_daemon_keeps_its_own_circuits(seeded_registry: Path) -> None:
    with UsageReporter(seeded_registry, interval=SELDOM) as reporter, Registry(seeded_registry) as registry:
        fail(reporter)
        until(registry.health)
        assert states(seeded_registry) == {(NAME, 1): "open"}
        await_all(fork(lambda: _must(registry.health())))
        with daemon(seeded_registry):
            reporter.record("dspy.ReAct", 5.0)
            assert reporter.flush()
            # Now it is the daemon that says so, from what the process had kept for it.
            assert registry.host_health.file() is not None
            assert not registry.host_health.current().own
            assert states(seeded_registry) == {(NAME, 1): "open"}


def _must(found: object) -> None:
    assert found


def test_own_circuits_go_by_the_policy(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.set_policy(NAME, Policy(minimum_failures=2))
    with UsageReporter(seeded_registry, interval=SELDOM) as reporter, Registry(seeded_registry) as registry:
        fail(reporter, 2)
        until(registry.health)


def test_a_forked_worker_tells_of_its_own_failures(seeded_registry: Path) -> None:
    with daemon(seeded_registry), UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        fail(reporter, 1)

        def work() -> None:
            fail(reporter, ENOUGH)
            assert reporter.flush()

        await_all(fork(work))
        until(lambda: states(seeded_registry))


def test_workers_of_a_daemon_that_is_stopped_go_by_what_they_see(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        with served.stopped(), Registry(seeded_registry) as registry:
            fail(reporter)
            until(registry.health)
        until(lambda: reporter.flush() and not registry.host_health.known.own)


def test_no_circuit_outlives_its_module(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, served.client() as client:
        client.register_module(module("acme.One"))
        client.open_circuit("acme.One", 600.0)
        client.open_circuit(NAME, 600.0)
        client.unregister_module("acme.One")
        until(lambda: states(seeded_registry) == {(NAME, 1): "open"})


def test_a_circuit_of_a_module_that_is_gone_can_be_reset(seeded_registry: Path) -> None:
    """In the second before it goes by itself, which no test can wait for: so the keeper runs without its daemon."""
    store = Store(seeded_registry)
    try:
        host = SimpleNamespace(environment=store.environment, files_group=None, revision=store.committer.revision)
        keeper = HealthKeeper(cast("Host", host))
        keeper.take(OpenCircuit(1, NAME, 600.0))
        host.revision = store.committer.commit(lambda draft: draft.unregister(NAME))
        keeper.take(ResetCircuit(2, NAME))
        assert states(seeded_registry) == {}
        with pytest.raises(UnknownModuleError):
            keeper.take(ResetCircuit(3, "acme.Nobody"))
        keeper.look(sweeps=False)
    finally:
        store.close()


def replace_with_few_files(path: str) -> None:
    """A daemon finds its file gone, may open one file more each time, and goes on opening circuits."""
    store = Store(Path(path))
    host = SimpleNamespace(environment=store.environment, files_group=None, revision=store.committer.revision)
    keeper = HealthKeeper(cast("Host", host))
    registry = Registry(path)
    registry.health()
    (Path(path) / HEALTH_FILE).unlink()
    for more in range(20):
        try:
            with few_files(more):
                keeper.look(sweeps=False)
        except StoreError:
            keeper.take(OpenCircuit(more, NAME, 600.0 + more))
            say(registry.host_health.current().state(NAME, 1))
            keeper.take(ResetCircuit(more, NAME))
            continue
        keeper.take(OpenCircuit(more, NAME, 600.0))
        say([registry.host_health.current().state(NAME, 1), *states(Path(path)).values()])
        return


def test_a_file_that_cannot_be_replaced_yet_stays_in_force(seeded_registry: Path) -> None:
    *meanwhile, at_last = run(__name__, "replace_with_few_files", seeded_registry)
    assert meanwhile == ["open"] * len(meanwhile) != []
    assert at_last == ["open", "open"]
