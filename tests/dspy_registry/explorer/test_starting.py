"""What keeps the explorer from starting: a missing package or registry, and an address that is open to others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import run

pytest.importorskip("fastapi")
pytest.importorskip("jinja2")

pytestmark = pytest.mark.xdist_group("explorer")


def test_it_refuses_to_be_open_to_other_hosts_without_a_token(seeded_registry: Path) -> None:
    done = run("ui", "--host", "0.0.0.0", "--path", seeded_registry, "--port", "0")
    assert done.returncode == 2
    assert "token" in done.stderr


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        (["ui"], "fastapi"),
        (["serve", "--metrics", "127.0.0.1:0"], "prometheus_client"),
        (["program", "publish", "acme.app:qa", "acme.Qa"], "dspy"),
    ],
)
def test_a_missing_extra_is_named(command: list[str], missing: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from dspy_registry.cli.program import main; main({command})"
    environment = {**os.environ, "DSPY_REGISTRY": str(tmp_path / "none"), "DSPY_REGISTRY_WAIT": "0"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 1
    assert missing in done.stderr
    assert "pip install" in done.stderr
    assert not (tmp_path / "none").exists()


def test_a_registry_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert run("ui", "--path", tmp_path / "none", DSPY_REGISTRY_WAIT="0").returncode == 1
