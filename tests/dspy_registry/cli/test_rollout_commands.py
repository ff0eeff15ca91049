"""`rollout` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspy_registry import RegistryWriter
from tests.support.command import answer, refusal, run
from tests.support.daemon_process import daemon, module

NAME = "acme.Qa"


@pytest.fixture
def labelled(seeded_registry: Path) -> Path:
    with RegistryWriter(seeded_registry) as writer:
        for milliseconds in (100, 200):
            writer.register_module(module(NAME, estimated_duration=milliseconds))
        writer.set_label(NAME, "live", 1)
    return seeded_registry


def test_a_rollout_by_hand(labelled: Path) -> None:
    with daemon(labelled):
        assert "there is no rollout" in run("rollout", "status").stderr + run("rollout", "status").stdout
        given = ("--steps", "5%,100", "--every", "1h", "--max-error-increase", "3%", "--max-p95-increase", "50")
        assert answer("rollout", NAME, "2", "--label", "live", *given)["revision"] > 0
        (found,) = answer("rollout", "status")["rollouts"]
        assert (found["state"], found["percent"], found["old"], found["new"]) == ("running", 5.0, 1, 2)
        assert found["plan"] == {
            "steps": [5.0, 100.0],
            "every": 3600.0,
            "max_error_increase": 0.03,
            "max_p95_increase": 0.5,
        }
        assert answer("label", "list", NAME)["labels"][0]["versions"] == {"1": 95.0, "2": 5.0}
        for action in ("pause", "resume"):
            assert run("rollout", action, NAME, "--label", "live").returncode == 0
        assert "running" in run("rollout", "status", NAME).stdout
        assert answer("rollout", "status", "acme.Other") == {"rollouts": [], "error": ""}
        assert run("rollout", "abort", NAME, "--label", "live").returncode == 0
        assert answer("label", "list", NAME)["labels"][0]["versions"] == {"1": 100.0}
        assert refusal("rollout", "abort", NAME, "--label", "live")[1]["type"] == "NotPossibleError"
        assert run("status").returncode == 0


@pytest.mark.parametrize("given", [("--steps", "few"), ("--every", "soon"), ("--max-p95-increase", "much")])
def test_what_is_no_plan(labelled: Path, given: tuple[str, str]) -> None:
    assert refusal("rollout", NAME, "2", "--label", "live", *given)[0] == 2
