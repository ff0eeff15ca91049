"""Guarded rollouts by a real daemon, with simulated minutes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from dspy_registry import (
    InvalidArgumentError,
    Registry,
    RegistryWriter,
    UnknownModuleError,
    UnknownVersionError,
    WriterClient,
)
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.rollout import Plan
from dspy_registry.registry_store.rollout_rows import load_rollouts, rollout_key
from dspy_registry.writer.rollouts import RolloutRequest, steer
from tests.support import rollout_daemon
from tests.support.client_kinds import Opened, either
from tests.support.daemon_process import Served, daemon_of
from tests.support.health_helpers import until
from tests.support.processes import child
from tests.support.rollout_daemon import NAME, PLAN, Traffic, facts, set_clock, two_versions


@pytest.fixture
def clock(registry_folder: Path, tmp_path: Path) -> Path:
    clock = tmp_path / "clock"
    two_versions(registry_folder, clock)
    return clock


@contextmanager
def served_by(folder: Path, clock: Path) -> Iterator[Served]:
    with daemon_of(rollout_daemon.__name__, "serve_by_clock", folder, str(clock)) as served:
        yield served


def named(folder: Path) -> dict[int, int]:
    with Registry(folder) as registry:
        return registry.labels(NAME)["live"].versions


@pytest.mark.parametrize("failing", [0, 1], ids=["good", "equal"])
def test_a_version_that_is_not_worse_gets_all_calls(registry_folder: Path, clock: Path, failing: int) -> None:
    with served_by(registry_folder, clock) as served, served.client() as client:
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        assert named(registry_folder) == {1: 9000, 2: 1000}
        shares = []

        def is_over() -> bool:
            found = facts(client)
            shares.append(found["percent"])
            return bool(found["state"] != "running")

        Traffic(registry_folder, clock, (failing, 100.0), (failing, 100.0)).until(is_over)
        assert facts(client)["state"] == "done"
        assert set(shares) <= {10.0, 50.0, 100.0}
        assert named(registry_folder) == {2: 10_000}


@pytest.mark.parametrize(
    ("new", "reason"), [((6, 100.0), "calls failed"), ((1, 300.0), "1.2 times the 95th percentile")]
)
def test_a_worse_version_is_returned_and_it_is_said_why(
    registry_folder: Path, clock: Path, new: tuple[int, float], reason: str
) -> None:
    lasting = Plan((10.0, 100.0), 1e6)
    with served_by(registry_folder, clock) as served, served.client() as client:
        client.start_rollout(NAME, 2, label="live", plan=lasting)
        Traffic(registry_folder, clock, (1, 100.0), new).until(lambda: facts(client)["state"] != "running")
        found = facts(client)
        assert (found["state"], found["percent"]) == ("returned", 0.0)
        assert reason in found["reason"]
        assert named(registry_folder) == {1: 10_000}


@pytest.mark.parametrize(
    ("failing", "state", "left"),
    [((1, 0), "done", {2: 10_000}), ((1, 1), "done", {2: 10_000}), ((1, 6), "returned", {1: 10_000})],
    ids=["better", "equal", "worse"],
)
def test_workers_that_ask_by_key_are_led_by_it(
    registry_folder: Path, clock: Path, failing: tuple[int, int], state: str, left: dict[int, int]
) -> None:
    """Two processes call what the label gives their keys, and report. Minutes are simulated."""
    plan = Plan((10.0, 50.0, 100.0), 600.0)
    with ExitStack() as stack:
        served = stack.enter_context(served_by(registry_folder, clock))
        client = stack.enter_context(served.client())
        workers = [
            stack.enter_context(child(rollout_daemon.__name__, "work", registry_folder, *failing)) for _ in range(2)
        ]
        client.start_rollout(NAME, 2, label="live", plan=plan)
        new_calls = 0
        for round_ in range(60):
            new_calls += sum(worker.ask(round_)[1] for worker in workers)
            if facts(client)["state"] != "running":
                break
            set_clock(clock, float(clock.read_text(encoding="ascii")) + 600.0)
        assert facts(client)["state"] == state
        assert named(registry_folder) == left
        assert new_calls > 0
        assert {round(each[1] / rollout_daemon.CALLS, 1) for each in [workers[0].ask(99)]} == {left.get(2, 0) / 10_000}


def test_it_survives_the_daemon(registry_folder: Path, clock: Path) -> None:
    with served_by(registry_folder, clock) as served, served.client() as client:
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        # One step's time, and not more: the next step cannot end, however late it is paused.
        set_clock(clock, time.time() + PLAN.every)
        Traffic(registry_folder, clock, (0, 100.0), (0, 100.0), seconds=0.0).until(lambda: facts(client)["step"] == 1)
        client.steer_rollout(NAME, "pause", label="live")
        before = facts(client)
        served.kill()
    with served_by(registry_folder, clock) as served, served.client() as client:
        after = facts(client)
        assert (after["step"], after["state"], after["errors"]) == (1, "paused", before["errors"])
        assert named(registry_folder) == {1: 5000, 2: 5000}
        set_clock(clock, time.time())
        client.steer_rollout(NAME, "resume", label="live")
        Traffic(registry_folder, clock, (0, 100.0), (9, 100.0), seconds=0.0).until(
            lambda: facts(client)["state"] != "running"
        )
        assert facts(client)["state"] == "returned"


@either
def test_an_operator_pauses_resumes_and_aborts(registry_folder: Path, clock: Path, connect: Opened) -> None:
    with served_by(registry_folder, clock), connect(registry_folder) as client:
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        client.start_rollout(NAME, 2, label="live", plan=PLAN)  # as it is already
        with pytest.raises(InvalidArgumentError, match="under a rollout"):
            client.start_rollout(NAME, 3, label="live", plan=PLAN)
        for action, state in (("pause", "paused"), ("resume", "running"), ("abort", "aborted")):
            client.steer_rollout(NAME, action, label="live")
            assert facts(client)["state"] == state
        assert named(registry_folder) == {1: 10_000}
        with pytest.raises(InvalidArgumentError, match="under no rollout"):
            client.steer_rollout(NAME, "resume", label="live")
        client.start_rollout(NAME, 3, label="live", plan=Plan((100.0,)))
        assert (facts(client)["state"], named(registry_folder)) == ("done", {3: 10_000})


def test_who_moves_the_label_ends_the_rollout(registry_folder: Path, clock: Path) -> None:
    with served_by(registry_folder, clock) as served, served.client() as client:
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        client.set_label(NAME, "live", 3)
        until(lambda: facts(client)["state"] == "overtaken")
        assert named(registry_folder) == {3: 10_000}
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        client.unregister_module(NAME)
        until(lambda: facts(client)["state"] == "overtaken")


def test_what_cannot_begin_changes_nothing(registry_folder: Path, clock: Path) -> None:
    with served_by(registry_folder, clock) as served, served.client() as client:
        with pytest.raises(InvalidArgumentError, match="steps must rise"):
            client.start_rollout(NAME, 2, label="live", plan=Plan((50.0, 10.0)))
        with pytest.raises(InvalidArgumentError, match="must name one version") as unset:
            client.start_rollout(NAME, 2, label="candidate")
        assert unset.value.message.startswith(f"{NAME} has no label candidate. ")
        assert unset.value.remedy == f"Set the label first: `dspy-registry label set {NAME} candidate 3`."
        with pytest.raises(InvalidArgumentError, match="must name one version") as unset:
            client.start_rollout(NAME, 9, label="candidate")
        assert "has no label candidate, and no version 9 is there (kept: 3, 2, 1). " in unset.value.message
        with pytest.raises(InvalidArgumentError, match="must name one version"):
            client.start_rollout(NAME, 1, label="live")
        with pytest.raises(UnknownVersionError):
            client.start_rollout(NAME, 9, label="live")
        with pytest.raises(UnknownModuleError):
            client.start_rollout("acme.Nobody", 2, label="live")
        with pytest.raises(InvalidArgumentError, match="no action"):
            client.steer_rollout(NAME, "hasten", label="live")
        assert client.status().sections["rollouts"] == {"rollouts": [], "error": ""}
        assert named(registry_folder) == {1: 10_000}


OTHER = rollout_key("acme.Damaged", "live")


@pytest.fixture
def damaged(registry_folder: Path, clock: Path) -> Path:
    """The clock of a registry with a row of a rollout that cannot be read."""
    with RegistryWriter(registry_folder) as writer:
        writer.store.committer.commit(lambda draft: draft.rollouts.update({OTHER: b"damaged"}))
    return clock


def error_of(client: WriterClient) -> str:
    return str(client.status().sections["rollouts"]["error"])


def test_a_damaged_rollout_is_told_and_all_others_go_on(registry_folder: Path, damaged: Path) -> None:
    with served_by(registry_folder, damaged) as served, served.client() as client:
        assert "acme.Damaged@live: a rollout: stored bytes" in error_of(client)
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        Traffic(registry_folder, damaged, (0, 100.0), (0, 100.0)).until(lambda: facts(client)["state"] == "done")
        assert named(registry_folder) == {2: 10_000}
        with pytest.raises(CorruptRecordError):
            client.steer_rollout("acme.Damaged", "pause", label="live")
        client.steer_rollout("acme.Damaged", "abort", label="live")
        assert error_of(client) == ""


def test_a_damaged_rollout_gives_way_to_a_new_one(registry_folder: Path, clock: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        row = {rollout_key(NAME, "live"): b"damaged"}
        writer.store.committer.commit(lambda draft: draft.rollouts.update(row))
    with served_by(registry_folder, clock) as served, served.client() as client:
        assert error_of(client)
        client.start_rollout(NAME, 2, label="live", plan=PLAN)
        assert (facts(client)["state"], error_of(client)) == ("running", "")


def test_readers_leave_out_a_damaged_rollout(registry_folder: Path, damaged: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        request = RolloutRequest(NAME, "live", "begin", 2)
        writer.store.committer.commit(lambda draft: steer(draft, request))
    with Registry(registry_folder) as registry, registry.snapshot() as snapshot:
        found = snapshot._in_transaction(load_rollouts)
        assert [each.name for each in found.sound] == [NAME]
        assert list(found.damaged) == ["acme.Damaged@live"]
    with RegistryWriter(registry_folder) as writer:  # the registry must be sound when the test ends
        writer.store.committer.commit(lambda draft: draft.rollouts.update({OTHER: None}))
