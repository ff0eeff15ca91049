"""What keeps the explorer from starting: a missing package or registry, and an address that is open to others."""

from __future__ import annotations

import os
import socket
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


def test_a_port_in_use_is_told_with_its_remedy(seeded_registry: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("ui", "--port", str(port), "--path", seeded_registry)
    assert done.returncode == 1
    assert done.stderr == f"error: 127.0.0.1:{port} is in use.\nName another port with --port.\n"


def test_an_address_of_another_host_is_told_with_its_remedy(seeded_registry: Path) -> None:
    done = run("ui", "--host", "192.0.2.1", "--port", "1", "--path", seeded_registry, DSPY_REGISTRY_UI_TOKEN="t" * 32)
    assert done.returncode == 1
    assert "nothing can be served at 192.0.2.1:1: " in done.stderr
    assert "Name another address with --host and --port." in done.stderr


@pytest.mark.parametrize("name", ["fastapi", "celery", "dspy"])
def test_a_connection_names_its_missing_extra(name: str) -> None:
    code = f"import sys; sys.modules[{name!r}] = None; import dspy_registry.integrations.{name}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    told = f"pip install 'dspy-module-registry[{name}]'."
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: ")
    assert done.stderr.splitlines()[-1].endswith(told)
