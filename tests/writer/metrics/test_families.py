"""What becomes of stored rows and of the daemon's state in metrics: pure functions."""

from __future__ import annotations

import msgspec
import pytest

pytest.importorskip("prometheus_client")

from dspy_registry.registry_store.advice import Standing
from dspy_registry.registry_store.duration_buckets import as_buckets, key_of
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.lifetime_durations import BOUNDS, LifetimeDurations
from dspy_registry.registry_store.protocol import DaemonStatus
from dspy_registry.registry_store.usage import ModuleUsage, VersionUsage
from dspy_registry.registry_store.usage_rows import Row, VersionFigures
from dspy_registry.writer.metrics.attach import Address, parse_address
from dspy_registry.writer.metrics.daemon_families import status_families
from dspy_registry.writer.metrics.usage_families import module_families, together, up_to_bounds, version_families

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples(families: object) -> Samples:
    """Values by name and label values."""
    return {
        (sample.name, tuple(sample.labels.values())): sample.value
        for family in families  # type: ignore[attr-defined]
        for sample in family.samples
    }


def test_counters_are_the_totals_that_are_stored() -> None:
    usage = ModuleUsage(
        "acme.Qa", 10, 3, 0, 2000, 70, 30, 0.5, 4, kinds=(6, 2, 1, 0, 0, 0, 1, 0)
    )  # ok, timeout, rate_limited, unavailable, error, invalid_output, caller, cancelled
    found = samples(module_families([Row(usage, {})]))
    assert found["dspy_registry_calls_total", ("acme.Qa",)] == 10
    assert found["dspy_registry_call_errors_total", ("acme.Qa", "timeout")] == 2
    assert found["dspy_registry_call_errors_total", ("acme.Qa", "rate_limited")] == 1
    assert ("dspy_registry_call_errors_total", ("acme.Qa", "caller")) not in found
    assert found["dspy_registry_tokens_total", ("acme.Qa", "in")] == 70
    assert found["dspy_registry_cost_dollars_total", ("acme.Qa",)] == 0.5
    assert found["dspy_registry_last_call_timestamp_seconds", ("acme.Qa",)] == 2.0


def test_a_histogram_counts_every_duration_once_over_all_sizes() -> None:
    short, long = as_buckets({key_of(80.0): 3, key_of(0.0): 1}), as_buckets({key_of(4_000.0): 2, key_of(9e6): 1})
    durations = together({"small": short, "large": long})
    counts = up_to_bounds(durations)
    by_bound = dict(counts)
    assert by_bound["0.01"] == 1
    assert by_bound["0.1"] == 4
    assert by_bound["5.0"] == 6
    assert by_bound["600.0"] == 6
    assert by_bound["+Inf"] == 7
    assert len(counts) == len(BOUNDS) + 1
    assert [count for _, count in counts] == sorted(count for _, count in counts)
    assert durations.seconds == pytest.approx(3 * 0.08 + 2 * 4 + 9_000, rel=0.01)
    assert up_to_bounds(together({}))[-1] == ("+Inf", 0.0)


def test_versions_have_percentiles_in_seconds() -> None:
    usage = VersionUsage("acme.Qa", 3, 5, standing={"normal": Standing(5, 1000.0, 2000.0, 3000.0)})
    found = samples(version_families([VersionFigures(usage, msgspec.Raw())]))
    assert found["dspy_registry_version_calls_total", ("acme.Qa", "3")] == 5
    assert found["dspy_registry_version_duration_seconds", ("acme.Qa", "3", "normal", "99")] == 3.0
    assert found["dspy_registry_version_call_duration_seconds_count", ("acme.Qa", "3")] == 0


def test_versions_have_the_histogram_of_their_whole_life() -> None:
    durations = LifetimeDurations().with_calls(as_buckets({key_of(80.0): 3, key_of(9e6): 1}))
    versions = [VersionFigures(VersionUsage("acme.Qa", 3, 4), msgspec.Raw(), durations)]
    found = samples(version_families(versions))
    name = "dspy_registry_version_call_duration_seconds"
    assert found[f"{name}_bucket", ("acme.Qa", "3", "0.05")] == 0
    assert found[f"{name}_bucket", ("acme.Qa", "3", "0.1")] == 3
    assert found[f"{name}_bucket", ("acme.Qa", "3", "600.0")] == 3
    assert found[f"{name}_bucket", ("acme.Qa", "3", "+Inf")] == found[f"{name}_count", ("acme.Qa", "3")] == 4
    assert found[f"{name}_sum", ("acme.Qa", "3")] == pytest.approx(3 * 0.08 + 9_000, rel=0.01)


def status(**sections: object) -> DaemonStatus:
    return DaemonStatus(
        pid=7, revision=5, uptime=60.0, connections=1, queued=2, requests=3, groups=4, hanging=False, sections=sections
    )


def test_what_is_wrong_with_manifests_and_readers_is_counted() -> None:
    manifests = {"errors": [{}, {}], "files": 3, "overrides": ["a.B"]}
    readers = [{"pid": 1, "slots": 2, "behind": 40, "since": 900.0}, {"pid": 2, "slots": 1, "behind": 0, "since": None}]
    found = samples(status_families(status(manifests=manifests, readers=readers), 1000.0))
    assert found["dspy_registry_manifest_errors", ()] == 2
    assert found["dspy_registry_overrides", ()] == 1
    assert found["dspy_registry_reader_slots", ()] == 3
    assert found["dspy_registry_oldest_snapshot_transactions", ()] == 40
    assert found["dspy_registry_oldest_snapshot_seconds", ()] == 100.0


def test_a_section_that_failed_is_an_error_of_its_own_kind() -> None:
    failed = {"error": "no such folder"}
    found = samples(status_families(status(manifests=failed, discovery=failed, readers=failed), 0.0))
    assert found["dspy_registry_manifest_errors", ()] == 1
    assert found["dspy_registry_discovery_failed", ()] == 1
    assert found["dspy_registry_reader_processes", ()] == 0
    assert found["dspy_registry_part_failed", ("discovery",)] == 1


def test_a_host_that_is_cut_off_from_its_cluster_is_told() -> None:
    hosts = {"a": {"name": "one", "release": "0.2.0"}, "b": {}}
    told = {"cluster": "c1", "host": "a", "leads": True, "circuits": 3, "changes": 9, "own_changes": 4, "lists": 1}
    cluster = {"lag_seconds": 7.5, "applied": 40, "newest": 42, "hosts": hosts, "error": "cut off", **told}
    found = samples(status_families(status(cluster=cluster), 0.0))
    assert found["dspy_registry_cluster_lag_seconds", ()] == 7.5
    assert found["dspy_registry_cluster_newest_revision", ()] - found["dspy_registry_cluster_applied_revision", ()] == 2
    assert found["dspy_registry_cluster_hosts", ()] == 2
    assert found["dspy_registry_cluster_info", ("c1", "a")] == 1
    assert found["dspy_registry_cluster_host_info", ("a", "one", "0.2.0")] == 1
    assert found["dspy_registry_cluster_leads", ()] == 1
    assert found["dspy_registry_cluster_circuits", ()] == 3
    assert found["dspy_registry_cluster_changes_total", ()] == 9
    assert found["dspy_registry_part_failed", ("cluster",)] == 1


def test_the_last_check_and_the_last_backup_are_told() -> None:
    sections = {"check": {"violations": 2, "error": "2 found"}, "backups": {"last_at": 5000, "error": ""}}
    found = samples(status_families(status(**sections), 0.0))
    assert found["dspy_registry_violations", ()] == 2
    assert found["dspy_registry_last_backup_timestamp_seconds", ()] == 5.0
    assert found["dspy_registry_part_failed", ("check",)] == 1
    assert found["dspy_registry_part_failed", ("backups",)] == 0
    never = samples(status_families(status(backups={"last_at": None}), 0.0))
    assert ("dspy_registry_last_backup_timestamp_seconds", ()) not in never


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:9464", Address("127.0.0.1", 9464)), ("[::1]:0", Address("::1", 0)), ("host:1", Address("host", 1))],
)
def test_an_address_is_host_and_port(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "9464", ":9464", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:70000", "::1:9464", "[]:1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        parse_address(text)
