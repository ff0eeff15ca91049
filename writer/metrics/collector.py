"""What Prometheus gets at each scrape. It runs in threads of its server, beside the daemon's loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.metadata
import logging
import threading
import time
from collections.abc import Iterator
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.data_file import unused_pages
from dspy_registry.registry_store.disk import free_bytes
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.health_file import HealthFile, entries
from dspy_registry.registry_store.layout import DATA_FILE
from dspy_registry.registry_store.limits_in_use import limit_of, limits_in_use, module_of
from dspy_registry.registry_store.policy_rows import load_policies
from dspy_registry.registry_store.protocol import DaemonStatus
from dspy_registry.registry_store.rollout_rows import load_rollouts
from dspy_registry.registry_store.usage_rows import (
    Row,
    VersionFigures,
    calls_lost,
    load_all,
    load_row,
    load_versions_of,
)
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.metrics import health_families, rollout_families, usage_families
from dspy_registry.writer.metrics.daemon_families import StoreFigures, build, status_families, store_families

MODULES_SHOWN: Final = 500
"""Modules that have series: Prometheus keeps each series in memory, and names may be many."""
VERSIONS_SHOWN: Final = 4
"""Versions of one module that have series: the newest that were called."""
_CHOSEN_FOR: Final = 60.0
"""Seconds for which the choice of modules stands where there are more than have series."""
_LOOP_PATIENCE: Final = 2.0

_log = logging.getLogger("dspy_registry")


class Figures(Collector):
    """Reads the registry and asks the loop for the daemon's state. Its server's threads may share it."""

    def __init__(self, host: Host, loop: asyncio.AbstractEventLoop, modules: int = MODULES_SHOWN) -> None:
        self._host = host
        self._loop = loop
        self._modules = modules
        self._release = importlib.metadata.version("dspy-module-registry")
        self._lock = threading.Lock()
        self._chosen: tuple[str, ...] = ()
        self._chosen_at = float("-inf")

    def describe(self) -> list[Metric]:
        """Nothing is collected for this: at the start there is nothing to read yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Every family. A part that cannot be read is told, and the others are there all the same."""
        failed = GaugeMetricFamily(
            "dspy_registry_scrape_failed", "1 for a part that could not be read at this scrape.", labels=("part",)
        )
        parts = {
            "store": self._store,
            "daemon": self._daemon,
            "usage": self._usage,
            "health": self._health,
            "limits": self._limits,
            "rollouts": self._rollouts,
        }
        for part, read in parts.items():
            found: list[Metric] = []
            try:
                found = list(read())
            except (RegistryError, OSError, concurrent.futures.TimeoutError, RuntimeError) as error:
                _log.warning("metrics: the part %s cannot be read: %s: %s", part, type(error).__name__, error)
            failed.add_metric((part,), int(not found))
            yield from found
        yield failed

    def _store(self) -> Iterator[Metric]:
        environment = self._host.environment
        with environment.long_read() as txn:
            dbs = environment.dbs
            state = lookup.load_state(txn, dbs)
            modules, lost = lookup.count_modules(txn, dbs), calls_lost(txn, dbs)
        unused, pages = unused_pages(environment.folder) or (None, None)
        size = (environment.folder / DATA_FILE).stat().st_size
        free = free_bytes(environment.folder)
        figures = StoreFigures(state.committed_at, modules, size, pages, unused, free, lost, dbs.format)
        yield build(self._release, dbs.format)
        yield from store_families(figures, time.time())

    def _daemon(self) -> Iterator[Metric]:
        async def ask() -> DaemonStatus:
            return self._host.status()

        asked = asyncio.run_coroutine_threadsafe(ask(), self._loop)
        try:
            status = asked.result(_LOOP_PATIENCE)
        finally:
            asked.cancel()
        yield from status_families(status, time.time())

    def _usage(self) -> Iterator[Metric]:
        environment = self._host.environment
        with environment.long_read() as txn:
            rows, versions = self._rows(txn, environment.dbs)
        yield from usage_families.module_families(rows)
        yield from usage_families.version_families(versions)
        yield GaugeMetricFamily("dspy_registry_modules_shown", "Modules whose usage has series.", len(rows))

    def _rows(self, txn: Transaction, dbs: Databases) -> tuple[list[Row], list[VersionFigures]]:
        rows: list[Row] = []
        versions: list[VersionFigures] = []
        for name in self._choice(txn, dbs):
            try:
                row = load_row(txn, dbs, name)
            except CorruptRecordError:  # it has no series; `check` tells of it
                continue
            if row is not None:
                rows.append(row)
                versions += load_versions_of(txn, dbs, name, VERSIONS_SHOWN)
        return rows, versions

    def _choice(self, txn: Transaction, dbs: Databases) -> tuple[str, ...]:
        """The modules that have series: registered ones first, then those called most."""
        with self._lock:
            is_full = len(self._chosen) >= self._modules
            if not is_full or time.monotonic() - self._chosen_at > _CHOSEN_FOR:
                names = [usage.name for usage in load_all(txn, dbs)]
                names.sort(key=lambda name: txn.get(name.encode(), None, dbs.modules) is None)
                self._chosen, self._chosen_at = tuple(names[: self._modules]), time.monotonic()
            return self._chosen

    def _health(self) -> Iterator[Metric]:
        try:
            found = entries(HealthFile(self._host.environment.folder).read()[1])
        except RegistryError:
            found = []
        yield from health_families.families(found)

    def _rollouts(self) -> Iterator[Metric]:
        environment = self._host.environment
        with environment.long_read() as txn:
            found = load_rollouts(txn, environment.dbs)
        yield from rollout_families.families(found.sound)

    def _limits(self) -> Iterator[Metric]:
        environment = self._host.environment
        used = limits_in_use(environment.folder)
        with environment.long_read() as txn:
            dbs = environment.dbs
            declarations = load_policies(txn, dbs) if used else []
            pools = {name: _pool(txn, dbs, name) for each in used if (name := module_of(each.key))}
        found = [(each.key, each.calls, limit_of(each.key, declarations, pools)) for each in used]
        yield from health_families.limit_families(found)


def _pool(txn: Transaction, dbs: Databases, name: str) -> str:
    info = lookup.find_info(txn, dbs, name)
    return "" if info is None else info.pool_type
