"""The files for deployment, each checked by its own tool; and the pages that describe them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from dspy_registry.cli.cluster import PASSWORD as PASSWORD_VARIABLE
from dspy_registry.cli.program import main
from dspy_registry.cli.ui import TOKEN_VARIABLE
from dspy_registry.cli.waiting import VARIABLE as WAIT_VARIABLE
from tests.support import ROOT

DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
MOST_EXPOSED = 2.0


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def checked(*command: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def rules() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    return found


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_understands_the_unit(unit: Path, tmp_path: Path) -> None:
    """With a program that is there: it looks for it."""
    there = tmp_path / unit.name
    there.write_text(unit.read_text().replace("/opt/dspy-registry/bin/dspy-registry", "/bin/true"))
    assert checked(tool("systemd-analyze"), "verify", there).stderr == ""


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_the_unit_little_exposed(unit: Path) -> None:
    done = checked(tool("systemd-analyze"), "security", "--offline=true", unit)
    level = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= MOST_EXPOSED


def test_systemd_understands_users_and_folders() -> None:
    users, folders = (DEPLOY / "systemd" / f"dspy-registry.{kind}.conf" for kind in ("sysusers", "tmpfiles"))
    said = checked(tool("systemd-sysusers"), "--dry-run", users)
    assert "dspy-workers" in said.stdout + said.stderr
    assert [line.split()[1] for line in folders.read_text().splitlines() if line[0] != "#"] == [
        "/var/lib/dspy-registry",
        "/etc/dspy-registry",
    ]


def test_prometheus_understands_its_configuration_and_the_alerts() -> None:
    promtool = tool("promtool")
    checked(promtool, "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    checked(promtool, "test", "rules", DEPLOY / "prometheus" / "alerts_test.yml")


@pytest.mark.full
def test_kubernetes_accepts_the_daemon_set() -> None:
    pytest.importorskip("kubernetes_validate")
    checked(sys.executable, "-m", "kubernetes_validate", "--strict", DEPLOY / "kubernetes" / "daemonset.yaml")


@pytest.mark.full
@pytest.mark.parametrize("name", ["compose.yaml", "cluster.yaml"])
def test_the_compose_file_keeps_its_schema(name: str) -> None:
    pytest.importorskip("check_jsonschema")
    compose = DEPLOY / "docker" / name
    checked(sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", compose)


def test_all_who_share_the_registry_share_its_volume_and_one_pid_namespace() -> None:
    services = yaml.safe_load((DEPLOY / "docker" / "compose.yaml").read_text())["services"]
    volume = "registry:/var/lib/dspy-registry"
    sharing = {name for name, service in services.items() if volume in service.get("volumes", ())}
    assert sharing == {"daemon", "explorer", "answers", "tasks"}
    assert {services[name].get("pid") for name in sharing - {"daemon"}} == {"service:daemon"}
    *_, daemon_set = yaml.safe_load_all((DEPLOY / "kubernetes" / "daemonset.yaml").read_text())
    pod = daemon_set["spec"]["template"]["spec"]
    assert pod["shareProcessNamespace"] is True
    for container in pod["containers"]:
        assert "/var/lib/dspy-registry" in [mount["mountPath"] for mount in container["volumeMounts"]]


def test_what_the_image_starts_is_there() -> None:
    file = DEPLOY / "docker" / "Dockerfile"
    copied = re.findall(r"^COPY (?!--from)(\S+) ", file.read_text(), re.MULTILINE)
    assert all((ROOT / path).exists() for path in copied)
    assert os.access(DEPLOY / "docker" / "start", os.X_OK)


# What the pages say


def test_every_alert_has_its_runbook_line_and_a_metric_that_exists() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    metrics = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    for rule in rules():
        assert f"| `{rule['alert']}` | {rule['annotations']['runbook']} |" in page
        for name in re.findall(r"dspy_registry_\w+", rule["expr"]):
            assert f"`{name.removesuffix('_bucket')}`" in metrics


def environment_variables(command: click.Command) -> set[str]:
    found = {name for each in command.params if isinstance(name := each.envvar, str)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            found |= environment_variables(inner)
    return found


def test_every_setting_from_the_environment_is_in_the_table() -> None:
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([A-Z_]+)`(?:, `[A-Z_]+`)* \|", page, re.MULTILINE))
    ours = environment_variables(main) | {PASSWORD_VARIABLE, TOKEN_VARIABLE, WAIT_VARIABLE}
    assert ours <= listed
    assert {name for name in listed if name.startswith("DSPY_REGISTRY")} == ours
