"""What Prometheus gets of a daemon: the figures are those of the registry, whatever happens to the daemon."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("prometheus_client")
pytest.importorskip("httpx")

from dspy_registry import ModuleInfo, Registry, RegistryWriter, UsageReporter, WriterClient
from dspy_registry.writer.daemon.lifecycle import Daemon
from dspy_registry.writer.metrics.attach import Address, attach_metrics
from tests.support import ROOT
from tests.support.command import run
from tests.support.daemon_process import daemon_of, ready
from tests.support.metrics import Measured, measured_daemon, parsed

pytestmark = pytest.mark.xdist_group("metrics")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("metrics") / "registry"
    with RegistryWriter(path):
        pass
    return path


@pytest.fixture(scope="module")
def measured(registry: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """A daemon with calls behind it, and a manifest in error."""
    manifests = tmp_path_factory.mktemp("manifests")
    (manifests / "wrong.toml").write_text("nonsense")
    with measured_daemon(registry, "--manifests", str(manifests)) as found:
        with WriterClient(registry) as client, UsageReporter(registry) as reporter:
            client.register_module(ModuleInfo("acme.Qa"))
            while not client.status().sections["manifests"]["errors"]:  # the folder is read beside the start
                time.sleep(0.02)
            for call in range(40):
                kind = "timeout" if call % 10 == 0 else None
                reporter.record("acme.Qa", 300.0, kind is None, 500, 10, 2, 0.25, error=kind, version=1, limit_ms=300.0)
            assert reporter.flush(60)
        yield found


def test_calls_tokens_cost_and_durations_are_those_that_were_reported(measured: Measured, registry: Path) -> None:
    with Registry(registry) as reader:
        usage = reader.usage("acme.Qa")
    name = {"module": "acme.Qa"}
    values = measured.values()

    def value(metric: str, **labels: str) -> float:
        return values[f"dspy_registry_{metric}", frozenset({**name, **labels}.items())]

    assert value("calls_total") == usage.calls == 40
    assert value("call_errors_total", kind="timeout") == usage.errors == 4
    assert value("tokens_total", direction="in") == 400
    assert value("cost_dollars_total") == 10.0
    assert value("call_duration_seconds_count") == 36
    assert value("call_duration_seconds_bucket", le="0.25") == 0
    assert value("call_duration_seconds_bucket", le="0.5") == 36
    assert value("call_duration_seconds_sum") == pytest.approx(36 * 0.3, rel=0.01)
    assert value("version_calls_total", version="1") == 40
    assert value("version_call_duration_seconds_count", version="1") == 36
    assert value("version_call_duration_seconds_bucket", version="1", le="0.25") == 0
    assert value("version_call_duration_seconds_bucket", version="1", le="0.5") == 36
    assert value("version_call_duration_seconds_sum", version="1") == pytest.approx(36 * 0.3, rel=0.01)


def test_the_daemon_and_its_files_are_measured(measured: Measured, registry: Path) -> None:
    values = measured.values()

    def value(metric: str, **labels: str) -> float:
        return values[f"dspy_registry_{metric}", frozenset(labels.items())]

    with Registry(registry) as reader:
        assert value("revision") == reader.revision
        assert value("last_commit_timestamp_seconds") == reader.committed_at / 1000
        assert value("modules") == len(reader)
    assert value("manifest_errors") == 1
    assert value("commit_duration_seconds_count") >= 2
    assert value("sync_duration_seconds_count") == value("commit_duration_seconds_count")
    assert value("data_file_bytes") == (registry / "data.mdb").stat().st_size
    assert value("lost_calls_total") == 0
    assert {part: value("scrape_failed", part=part) for part in ("store", "daemon", "usage", "health", "limits")} == {
        "store": 0, "daemon": 0, "usage": 0, "health": 0, "limits": 0,
    }  # fmt: skip


def test_prometheus_own_checker_finds_nothing(measured: Measured) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([promtool, "check", "metrics"], input=measured.text(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_status_tells_where_they_are(measured: Measured, registry: Path) -> None:
    with WriterClient(registry) as client:
        assert client.status().sections["metrics"]["address"] in measured.url


def test_totals_go_on_after_a_daemon_was_killed(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder):
        pass
    with UsageReporter(registry_folder) as reporter:
        for expected in (5, 10):
            with measured_daemon(registry_folder) as found:
                for _ in range(5):
                    reporter.record("dspy.Predict", 10.0)
                assert reporter.flush(60)
                assert found.value("dspy_registry_calls_total", module="dspy.Predict") == expected
                found.kill()


def test_a_versions_histogram_rises_and_begins_again_as_a_whole_after_a_reset(registry_folder: Path) -> None:
    name = "dspy_registry_version_call_duration_seconds"

    def counted(found: Measured, calls: int) -> dict[str, float]:
        for _ in range(calls):
            reporter.record("acme.Qa", 80.0, version=1)
        assert reporter.flush(60)
        shown = {(metric, dict(labels).get("le", "")): value for (metric, labels), value in found.values().items()}
        return {
            "0.05": shown.get((f"{name}_bucket", "0.05"), -1),
            "0.1": shown.get((f"{name}_bucket", "0.1"), -1),
            "count": shown.get((f"{name}_count", ""), -1),
            "sum": round(shown.get((f"{name}_sum", ""), -1), 1),
        }

    with RegistryWriter(registry_folder) as writer:
        writer.register_module(ModuleInfo("acme.Qa"))
    with measured_daemon(registry_folder) as found, UsageReporter(registry_folder) as reporter:
        assert counted(found, 20) == {"0.05": 0, "0.1": 20, "count": 20, "sum": 1.6}
        assert counted(found, 10) == {"0.05": 0, "0.1": 30, "count": 30, "sum": 2.4}
        with WriterClient(registry_folder) as client:
            client.reset_usage("acme.Qa", 1)
        assert counted(found, 0) == {"0.05": -1, "0.1": -1, "count": -1, "sum": -1}, "the series ends"
        assert counted(found, 5) == {"0.05": 0, "0.1": 5, "count": 5, "sum": 0.4}


def serve_few(path: str, port_file: str) -> None:
    """A daemon that shows the usage of two modules."""

    def attach(daemon: Daemon) -> None:
        Path(port_file).write_text(str(attach_metrics(daemon, Address("127.0.0.1", 0), modules=2)))

    Daemon(path, extensions=[attach]).run(ready)


def test_names_beyond_the_bound_have_no_series_and_registered_ones_come_first(
    registry_folder: Path, tmp_path: Path
) -> None:
    import httpx

    with RegistryWriter(registry_folder):
        pass
    file = tmp_path / "address"
    with daemon_of(__name__, "serve_few", registry_folder, file) as served, UsageReporter(registry_folder) as reporter:
        for name, count in (("nobody.Knows", 9), ("dspy.Predict", 2), ("dspy.ReAct", 3), ("dspy.MIPROv2", 1)):
            for _ in range(count):
                reporter.record(name, 10.0)
        assert reporter.flush(60)
        values = parsed(httpx.get(f"http://{file.read_text()}/metrics", timeout=60).text)
        shown = {dict(labels)["module"] for name, labels in values if name == "dspy_registry_calls_total"}
        assert shown == {"dspy.ReAct", "dspy.Predict"}
        assert served.end() == 0


def test_an_address_that_is_taken_is_told_at_the_start(measured: Measured, registry_folder: Path) -> None:
    address = measured.url.removeprefix("http://").removesuffix("/metrics")
    done = run("serve", "--path", registry_folder, "--metrics", address)
    assert done.returncode == 1
    assert address in done.stderr


@pytest.mark.parametrize("address", ["9464", "nonsense"])
def test_a_wrong_address_makes_no_registry(address: str, tmp_path: Path) -> None:
    done = run("serve", "--path", tmp_path / "none", "--metrics", address)
    assert done.returncode == 2
    assert not (tmp_path / "none").exists()


_ONLY_WITH_OPTIONS = (
    "discovery_failed",
    "discovery_failures",
    "discovered_modules",
    "violations",
    "last_backup_timestamp_seconds",
    "cluster_lag_seconds",
    "cluster_applied_revision",
    "cluster_newest_revision",
    "cluster_hosts",
    "cluster_waiting",
    "cluster_set_aside",
    "cluster_conflicts",
    "cluster_reconnects",
    "cluster_info",
    "cluster_host_info",
    "cluster_leads",
    "cluster_circuits",
    "cluster_changes",
    "cluster_own_changes",
    "cluster_lists",
)


def test_every_metric_is_on_its_page_and_the_other_way_round(measured: Measured) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `(dspy_registry_\w+)` \|", page, re.MULTILINE))
    documented = {name.removesuffix("_total") for name in documented}
    shown = set(re.findall(r"^# TYPE (dspy_registry_\w+) ", measured.text(), re.MULTILINE))
    shown = {name.removesuffix("_total") for name in shown}
    assert documented - shown == {f"dspy_registry_{name}" for name in _ONLY_WITH_OPTIONS}
    assert shown <= documented
