"""The daemon and its files as metric families. Pure: what was found out in, families out."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from dspy_registry.registry_store.protocol import DaemonStatus

_MOST_HOSTS: Final = 500


class StoreFigures(NamedTuple):
    """Of the registry's files. None: not known."""

    committed_at: int  # milliseconds since the epoch
    modules: int
    data_bytes: int
    pages: int | None
    unused_pages: int | None
    free_bytes: int | None
    calls_lost: int
    format: int


def build(release: str, format: int) -> Metric:
    """Which release this is."""
    family = InfoMetricFamily("dspy_registry_build", "The release that runs, its Python, the registry's format.")
    family.add_metric((), {"version": release, "python": platform.python_version(), "format": str(format)})
    return family


def store_families(store: StoreFigures, now: float) -> Iterator[Metric]:
    """`now` is Unix time."""
    committed = store.committed_at / 1000
    yield _gauge("last_commit_timestamp_seconds", "When the newest revision was committed.", committed)
    yield _gauge("commit_age_seconds", "Time since the newest revision was committed.", max(0.0, now - committed))
    yield _gauge("modules", "Registered modules.", store.modules)
    yield _gauge("data_file_bytes", "Size of data.mdb.", store.data_bytes)
    if store.pages is not None:
        yield _gauge("data_file_pages", "Pages of data.mdb.", store.pages)
    if store.unused_pages is not None:
        yield _gauge("data_file_free_pages", "Pages of data.mdb that hold nothing now.", store.unused_pages)
    if store.free_bytes is not None:
        yield _gauge("disk_free_bytes", "Free space on the disk of the registry.", store.free_bytes)
    yield _counter("lost_calls", "Calls that reporters or the daemon had no room for.", store.calls_lost)


def status_families(status: DaemonStatus, now: float) -> Iterator[Metric]:
    """`now` is Unix time."""
    yield _gauge("revision", "The newest revision that the daemon committed.", status.revision)
    yield _gauge("uptime_seconds", "Time since the daemon began.", status.uptime)
    yield _gauge("connections", "Open connections of clients.", status.connections)
    yield _gauge("queued_requests", "Requests that wait for a commit.", status.queued)
    yield _gauge("commit_hanging", "1 while a commit takes so long that it may never end.", int(status.hanging))
    yield _counter("requests", "Requests answered since the daemon began.", status.requests)
    yield _counter("commit_groups", "Groups committed since the daemon began.", status.groups)
    yield _sections(status.sections)
    for name, section in status.sections.items():
        if name in _SECTIONS:
            yield from _SECTIONS[name](section, now)


def _sections(sections: dict[str, Any]) -> Metric:
    family = GaugeMetricFamily(
        "dspy_registry_part_failed",
        "1 for a part of the daemon that reports an error: discovery, the last check, the last backup, and so on.",
        labels=("part",),
    )
    for name, section in sections.items():
        if isinstance(section, dict):
            family.add_metric((name,), int(bool(section.get("error"))))
    return family


def _backups(section: Any, now: float) -> Iterator[Metric]:
    last = _mapping(section).get("last_at")
    if last:
        yield _gauge("last_backup_timestamp_seconds", "When the newest complete backup was made.", last / 1000)


def _check(section: Any, now: float) -> Iterator[Metric]:
    yield _gauge("violations", "What the last check found wrong.", _mapping(section).get("violations", 0))


def _manifests(section: Any, now: float) -> Iterator[Metric]:
    section = _mapping(section)
    yield _gauge("manifest_files", "Manifest files that are followed.", section.get("files", 0))
    yield _gauge("manifest_errors", "Errors in manifests, or 1 for a folder that cannot be read.", _errors(section))
    yield _gauge("overrides", "Manifest modules that a client's record overrides.", len(section.get("overrides", ())))


def _discovery(section: Any, now: float) -> Iterator[Metric]:
    section = _mapping(section)
    yield _gauge("discovery_failed", "1 when the last discovery failed.", int(bool(section.get("error"))))
    failures = len(section.get("failures", ())) + len(section.get("refused", ()))
    yield _gauge("discovery_failures", "Packages and modules that the last discovery could not take.", failures)
    yield _gauge("discovered_modules", "Modules that the last discovery found.", section.get("modules", 0))


def _readers(section: Any, now: float) -> Iterator[Metric]:
    readers = section if isinstance(section, list) else []
    behind = [reader for reader in readers if reader["behind"]]
    since = [reader["since"] for reader in behind if reader["since"] is not None]
    yield _gauge("reader_processes", "Processes with slots in the table of readers.", len(readers))
    yield _gauge("reader_slots", "Slots in use in the table of readers.", sum(reader["slots"] for reader in readers))
    yield _gauge(
        "oldest_snapshot_transactions",
        "Transactions that the oldest open snapshot is behind.",
        max((reader["behind"] for reader in behind), default=0),
    )
    yield _gauge(
        "oldest_snapshot_seconds",
        "Time for which the oldest snapshot that is behind has been seen.",
        max(0.0, now - min(since)) if since else 0.0,
    )


def _usage(section: Any, now: float) -> Iterator[Metric]:
    section = _mapping(section)
    yield _counter("usage_batches", "Batches of reporters taken in since the daemon began.", section.get("batches", 0))
    yield _counter("usage_merges", "Merges of such batches since the daemon began.", section.get("merges", 0))


def _health(section: Any, now: float) -> Iterator[Metric]:
    section = _mapping(section)
    yield _counter(
        "health_outcomes", "Outcomes that health was told since the daemon began.", section.get("outcomes", 0)
    )
    moved = CounterMetricFamily(
        "dspy_registry_circuit_transitions", "Circuits that opened or closed since the daemon began.", labels=("to",)
    )
    for state, key in (("open", "opened"), ("closed", "closed")):
        moved.add_metric((state,), section.get(key, 0))
    yield moved


def _cluster(section: Any, now: float) -> Iterator[Metric]:
    section = _mapping(section)
    yield _gauge("cluster_lag_seconds", "Time since the cluster was last heard.", section.get("lag_seconds", 0))
    yield _gauge("cluster_applied_revision", "The cluster's revision that this host holds.", section.get("applied", 0))
    yield _gauge("cluster_newest_revision", "The newest revision heard of the cluster.", section.get("newest", 0))
    yield _gauge("cluster_hosts", "Hosts of the cluster that are present.", len(section.get("hosts", ())))
    yield _gauge("cluster_waiting", "Changes of this host that wait for the cluster.", section.get("waiting", 0))
    yield _gauge("cluster_set_aside", "Local declarations that contradict the cluster.", section.get("errors", 0))
    yield _gauge("cluster_circuits", "Circuits that hosts of the cluster have told of.", section.get("circuits", 0))
    yield _gauge("cluster_leads", "1 while this host leads the cluster.", int(bool(section.get("leads"))))
    yield _counter("cluster_changes", "Changes that the cluster has made in all.", section.get("changes", 0))
    yield _counter("cluster_own_changes", "Changes that this host made.", section.get("own_changes", 0))
    yield _counter("cluster_lists", "Times that everything was compared with the cluster.", section.get("lists", 0))
    yield from _cluster_members(section)
    yield _counter("cluster_conflicts", "Changes that were staged again.", section.get("conflicts", 0))
    yield _counter("cluster_reconnects", "Times that the watch was begun again.", section.get("reconnects", 0))


def _cluster_members(section: dict[str, Any]) -> Iterator[Metric]:
    here = InfoMetricFamily("dspy_registry_cluster", "The cluster that this host follows, and its id there.")
    here.add_metric((), {"cluster": str(section.get("cluster") or ""), "host": str(section.get("host", ""))})
    yield here
    alive = InfoMetricFamily("dspy_registry_cluster_host", "A host that is present, at most 500.", labels=("host",))
    for host, told in list(_mapping(section.get("hosts")).items())[:_MOST_HOSTS]:
        told = _mapping(told)
        alive.add_metric((host,), {"name": str(told.get("name", "")), "release": str(told.get("release", ""))})
    yield alive


_SECTIONS = {
    "manifests": _manifests,
    "discovery": _discovery,
    "readers": _readers,
    "usage": _usage,
    "health": _health,
    "backups": _backups,
    "check": _check,
    "cluster": _cluster,
}


def _errors(section: dict[str, Any]) -> int:
    return len(section.get("errors", ())) or int(bool(section.get("error")))


def _mapping(section: Any) -> dict[str, Any]:
    return section if isinstance(section, dict) else {}


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dspy_registry_{name}", text, value)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"dspy_registry_{name}", text, value)
