"""`health`, `limits` and `policy` on the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from dspy_registry import Policy, Registry, RegistryWriter
from tests.support.command import COMMAND, answer, refusal, run
from tests.support.daemon_process import daemon
from tests.support.health_helpers import NAME


def test_a_healthy_host(seeded_registry: Path) -> None:
    assert answer("health") == {"unhealthy": []}
    assert "healthy" in run("health").stdout


def test_opened_and_reset_by_hand(seeded_registry: Path) -> None:
    with daemon(seeded_registry):
        assert answer("health", "open", "Predict", "--for", "10m") == {
            "name": "Predict",
            "version": None,
            "seconds": 600.0,
        }
        (entry,) = answer("health")["unhealthy"]
        assert (entry["name"], entry["version"], entry["state"]) == (NAME, 1, "open")
        shown = run("health").stdout
        assert NAME in shown
        assert "operator" in shown
        assert run("health", "reset", NAME, "--version", "1").returncode == 0
        assert answer("health") == {"unhealthy": []}
        status, error = refusal("health", "open", "acme.Nothing", "--for", "1s")
        assert (status, error["type"]) == (1, "UnknownModuleError")


@pytest.mark.parametrize("time", ["10", "0s", "m", "-1s", "1d"])
def test_a_malformed_time_is_wrong_usage(seeded_registry: Path, time: str) -> None:
    assert run("health", "open", NAME, "--for", time).returncode == 2


def test_without_a_daemon_nothing_is_opened(seeded_registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPY_REGISTRY_WAIT", "0")
    assert refusal("health", "open", NAME, "--for", "1s")[1]["type"] == "WriterUnavailableError"


def test_watch_prints_each_change(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, served.client() as client:
        watching = subprocess.Popen([*COMMAND, "health", "--watch", "--json"], stdout=subprocess.PIPE, text=True)
        assert watching.stdout is not None
        try:
            assert json.loads(watching.stdout.readline()) == {"unhealthy": []}
            client.open_circuit(NAME, 0.5)
            states = [json.loads(watching.stdout.readline())["unhealthy"][0]["state"] for _ in range(2)]
            assert states == ["open", "half_open"]  # nobody tells that a deadline has passed: the clock does
            client.reset_circuit(NAME)
            assert json.loads(watching.stdout.readline()) == {"unhealthy": []}
        finally:
            watching.send_signal(signal.SIGINT)
            watching.wait(30)
            watching.stdout.close()


def test_limits_show_who_holds_what(seeded_registry: Path) -> None:
    assert answer("limits") == {"calls": []}
    with RegistryWriter(seeded_registry) as writer:
        writer.set_policy(NAME, Policy(max_concurrency=2))
    with Registry(seeded_registry) as registry, registry.limit(NAME):
        (call,) = answer("limits")["calls"]
        assert (call["limit"], call["pid"]) == (f"module:{NAME}", os.getpid())
        assert str(os.getpid()) in run("limits").stdout
    assert "no call" in run("limits").stdout


def test_policies_are_set_listed_and_removed(seeded_registry: Path) -> None:
    assert answer("policy", "list") == {"policies": []}
    set_there = ("--max-concurrency", "4", "--max-timeout", "2.5")
    revision = answer("policy", "set", "dspy.*", *set_there, "--embedded")["revision"]
    declared = {"pattern": "dspy.*", "source": "client", "max_concurrency": 4, "max_timeout": 2.5}
    assert answer("policy", "list") == {"policies": [declared]}
    assert "max_concurrency 4" in run("policy", "list").stdout
    with Registry(seeded_registry) as registry:
        assert registry.policy(NAME) == Policy(max_concurrency=4, max_timeout=2.5)
    with daemon(seeded_registry):
        assert answer("policy", "remove", "dspy.*")["revision"] == revision + 1
    assert answer("policy", "list") == {"policies": []}


def test_a_policy_that_makes_no_sense_is_refused(seeded_registry: Path) -> None:
    status, error = refusal("policy", "set", "dspy.*", "--max-concurrency", "0", "--failure-share", "7", "--embedded")
    assert (status, error["type"]) == (2, "InvalidArgumentError")
    assert "max_concurrency" in error["message"]
    assert "failure_share" in error["message"]
    assert refusal("policy", "set", "dspy.*", "--embedded")[0] == 2
    assert run("policy").returncode == run("policy", "set").returncode == 2
