"""The fault suite with the small counts: each fault is tried some times by `make test`, and more by `make stress`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


def try_out(name: str, tmp_path: Path, *options: str) -> None:
    """In a process of its own, which forks."""
    output = tmp_path / "stress.json"
    command = [sys.executable, "-m", "tests.stress", "--only", name, "--small", "--output", str(output), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


@pytest.mark.parametrize(
    "name",
    ["power_loss", "killed_writer", "disk_errors", "damage", "inputs", "live_frames", "readers", "environment"],
)
def test_nothing_is_violated_by(name: str, tmp_path: Path) -> None:
    try_out(name, tmp_path)


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["pools", "soak"])
def test_nothing_is_violated_within_a_minute_of(name: str, tmp_path: Path) -> None:
    try_out(name, tmp_path, "--minutes", "1")
