"""The fault suite: each fault is tried a few times by `make test`, more often by CI, and most by `make stress`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.etcd import needs_etcd
from tests.support.selection import each


def try_out(name: str, tmp_path: Path, *options: str) -> None:
    """In a process of its own, which forks."""
    output = tmp_path / "stress.json"
    command = [sys.executable, "-m", "tests.stress", "--only", name, "--small", "--output", str(output), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


QUICK = {
    "power_loss": 20,
    "killed_writer": 4,
    "disk_errors": 5,
    "damage": 25,
    "inputs": 8_000,
    "live_frames": 250,
    "readers": 7,
    "environment": 9,
}


@pytest.mark.parametrize("name", each(2, QUICK))
def test_nothing_is_violated_by_a_few_of(name: str, tmp_path: Path) -> None:
    try_out(name, tmp_path, "--count", str(QUICK[name]))


@pytest.mark.full
@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_violated_by(name: str, tmp_path: Path) -> None:
    try_out(name, tmp_path)


@needs_etcd
@pytest.mark.full
@pytest.mark.timeout(900)
def test_nothing_is_violated_by_histories_of_a_cluster(tmp_path: Path) -> None:
    try_out("cluster", tmp_path)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["pools", "soak"])
def test_nothing_is_violated_within_a_minute_of(name: str, tmp_path: Path) -> None:
    try_out(name, tmp_path, "--minutes", "1")
