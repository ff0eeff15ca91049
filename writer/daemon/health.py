"""Health in the writer daemon: it counts how calls ended, and publishes which module versions are not healthy.

Everything happens in the daemon's loop and in memory. The published file is the only thing that outlives the daemon:
the next daemon adopts it, unless the host has booted since.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from typing import Final

from dspy_registry.registry_store.boot_clock import boot_seconds, unix_time
from dspy_registry.registry_store.circuit import CLOSED, CircuitRow, CircuitRules, Outcome, rules_of
from dspy_registry.registry_store.circuits import Circuits, Key
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryError
from dspy_registry.registry_store.health_file import HealthFile, ensure_health_file
from dspy_registry.registry_store.lease_file import compact_large_lease_file, ensure_lease_file
from dspy_registry.registry_store.outcome_kinds import ERROR, KINDS
from dspy_registry.registry_store.policy import Declaration, effective_policy
from dspy_registry.registry_store.policy_rows import load_policies
from dspy_registry.registry_store.protocol import HealthRequest, OpenCircuit, ReportedOutcome, ReportOutcomes
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.classes import ClassIndex
from dspy_registry.writer.daemon.host import Host

LOOK_EVERY: Final = 1.0
"""Seconds between two looks whether the file is still the one in the folder."""
_SWEEP_EVERY: Final = 60  # looks

_log = logging.getLogger("dspy_registry")


def keep_health(host: Host) -> None:
    """Let a daemon keep the health of its modules. Where its files cannot be made, it runs without."""
    try:
        prepare_lease_file(host)
        keeper = HealthKeeper(host)
    except RegistryError as error:
        told = f"the health of modules is not kept: {error}"
        _log.error("%s", told)
        host.add_section("health", lambda: {"error": told})
        return
    host.health_sink = keeper.take
    host.add_task(keeper.run)
    host.add_section("health", keeper.status)


def prepare_lease_file(host: Host) -> None:
    """The file of limits, made for the group whose workers write it. One that has grown is emptied if nobody uses it.

    Raises StoreError, StorePermissionError.
    """
    folder = host.environment.folder
    ensure_lease_file(folder, host.files_group)
    compact_large_lease_file(folder, host.files_group)


class HealthKeeper:
    """The circuits of the host. Raises StoreError, StorePermissionError when the file cannot be made.

    `clock` gives boot-time seconds, `chance` a number from 0 to below 1.
    """

    def __init__(
        self,
        host: Host,
        clock: Callable[[], float] = boot_seconds,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._host = host
        self._clock = clock
        self._names = _Names(host)
        self._circuits = Circuits(clock, chance, self._names.rules)
        self._outcomes = 0
        self._opened_count = self._closed_count = 0
        self._file = self._opened()
        _, rows = self._file.read()
        self._circuits.adopt(rows)
        self._published: Sequence[CircuitRow] = rows

    def status(self) -> dict[str, int]:
        """Outcomes, openings and closings since the start, and the module versions that are not healthy now."""
        now = self._clock()
        return {
            "outcomes": self._outcomes,
            "unhealthy": sum(row.state(now) != CLOSED for row in self._published),
            "opened": self._opened_count,
            "closed": self._closed_count,
        }

    def take(self, request: HealthRequest) -> None:
        """Count outcomes, or open or close by hand. Raises UnknownModuleError."""
        if isinstance(request, ReportOutcomes):
            is_changed = [self._count(told) for told in request.outcomes]
        elif isinstance(request, OpenCircuit):
            name, version = self._names.asked(request.name)
            is_changed = [self._circuits.open_by_hand(name, request.version or version, request.seconds)]
        else:
            is_changed = [self._circuits.reset(self._names.asked(request.name)[0], request.version)]
        if any(is_changed):
            self._publish()

    def _count(self, told: ReportedOutcome) -> bool:
        key = self._names.key(told.names, told.version, told.began)
        if key is None:
            return False
        self._outcomes += 1
        kind = told.kind if told.kind in KINDS else ERROR
        return self._circuits.record(*key, Outcome(told.began, told.ended, kind, told.retry_after))

    async def run(self) -> None:
        """Keep the file in place, and forget what holds no information any more. Until cancelled."""
        looks = 0
        while True:
            await asyncio.sleep(LOOK_EVERY)
            looks += 1
            try:
                self.look(sweeps=looks % _SWEEP_EVERY == 0)
            except RegistryError as error:
                _log.warning("the health of modules cannot be published: %s", error)

    def look(self, *, sweeps: bool) -> None:
        """Replace a file that was removed. `sweeps`: forget what holds no information, too."""
        if not self._file.is_current():
            self._file.retire()
            self._file = self._opened()
            self._publish()
        if sweeps:
            self._circuits.sweep()
            if len(self._circuits.rows()) != len(self._published):
                self._publish()

    def _opened(self) -> HealthFile:
        return ensure_health_file(self._host.environment.folder, self._host.files_group)

    def _publish(self) -> None:
        rows = self._circuits.rows()
        self._tell(rows)
        self._published = rows
        self._file.publish(rows)
        self._file.futex.wake_all()

    def _tell(self, rows: Sequence[CircuitRow]) -> None:
        before = {(row.name, row.version): row for row in self._published}
        for row in rows:
            was = before.get((row.name, row.version))
            if row.until and (was is None or was.openings != row.openings):
                self._opened_count += 1
                seconds = row.until - self._clock()
                _log.warning("%s version %d is not healthy (%s): calls go elsewhere for %.0f s", *_told(row), seconds)
            elif not row.until and was is not None and was.until:
                self._closed_count += 1
                _log.warning("%s version %d is healthy again (it was: %s)", *_told(row))


def _told(row: CircuitRow) -> tuple[str, int, str]:
    return row.name, row.version, row.last_kind


class _Found:
    """The module that reported names mean: its full name, the version in force, and since when (Unix time)."""

    __slots__ = ("name", "pool", "since", "version")

    def __init__(self, name: str, version: int, since: float, pool: str) -> None:
        self.name = name
        self.version = version
        self.since = since
        self.pool = pool


class _Names:
    """What names, versions and rules are, as of the newest revision. Kept until there is another one."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._revision = -1
        self._classes = ClassIndex()
        self._found: dict[tuple[str, ...], _Found | None] = {}
        self._kept: dict[Key, bool] = {}
        self._rules: dict[str, CircuitRules] = {}
        self._declarations: list[Declaration] | None = None

    def asked(self, name: str) -> Key:
        """The full name and the version in force of what was asked for. Raises UnknownModuleError."""
        found = self._of((name,))
        if found is None:
            with self._host.environment.reading() as txn:
                raise Catalog(txn, self._host.environment.dbs).unknown(name)
        return found.name, found.version

    def key(self, names: tuple[str, ...], version: int, began: float) -> Key | None:
        """The module and version of a call. None: it is not registered, or the version is not kept any longer."""
        found = self._of(names)
        if found is None:
            return None
        if version:
            return (found.name, version) if version == found.version or self._is_kept(found.name, version) else None
        at = unix_time(began)
        if at >= found.since:
            return found.name, found.version
        with self._host.environment.reading() as txn:
            version = Catalog(txn, self._host.environment.dbs).version_at(found.name, int(at * 1000))
        return (found.name, version) if version else None

    def rules(self, name: str) -> CircuitRules:
        """The rules of a module of this full name."""
        self._follow()
        if name not in self._rules:
            found = self._of((name,))
            policy = effective_policy(self._declared(), name, "" if found is None else found.pool)
            self._rules[name] = rules_of(policy)
        return self._rules[name]

    def _declared(self) -> list[Declaration]:
        if self._declarations is None:
            try:
                with self._host.environment.reading() as txn:
                    self._declarations = load_policies(txn, self._host.environment.dbs)
            except CorruptRecordError as error:
                _log.warning("%s Circuits go by the default numbers.", error)
                self._declarations = []
        return self._declarations

    def _of(self, names: tuple[str, ...]) -> _Found | None:
        self._follow()
        if names not in self._found:
            with self._host.environment.reading() as txn:
                self._found[names] = self._look_up(Catalog(txn, self._host.environment.dbs, None, self._classes), names)
        return self._found[names]

    def _look_up(self, catalog: Catalog, names: tuple[str, ...]) -> _Found | None:
        """By the rule of statistics: a registered name first, then what else a name may mean."""
        for find in (lambda name: name, catalog.registered_name, catalog.name_of_class):
            for name in names:
                full = find(name)
                try:
                    stored = None if full is None or not full else catalog.module(full)
                except CorruptRecordError:
                    stored = None
                if stored is not None:
                    kept = stored.provenance
                    return _Found(stored.info.name, kept.version, kept.updated_at / 1000, stored.info.pool_type)
        return None

    def _is_kept(self, name: str, version: int) -> bool:
        key = name, version
        if key not in self._kept:
            with self._host.environment.reading() as txn:
                self._kept[key] = Catalog(txn, self._host.environment.dbs).is_kept(name, version)
        return self._kept[key]

    def _follow(self) -> None:
        revision = self._host.revision
        if revision != self._revision or len(self._found) + len(self._kept) > _NAMES_KEPT:
            self._found, self._kept, self._rules, self._declarations = {}, {}, {}, None
            self._classes = ClassIndex()
            self._revision = revision


_NAMES_KEPT: Final = 16_384
