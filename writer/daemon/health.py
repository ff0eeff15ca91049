"""Health in the writer daemon: it counts how calls ended, and publishes which module versions are not healthy.

Everything happens in the daemon's loop and in memory. The published file is the only thing that outlives the daemon:
the next daemon adopts it, unless the host has booted since.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import msgspec

from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CLOSED, CircuitRow, Outcome
from dspy_registry.registry_store.circuits import Circuits, Key
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.health_file import HealthFile, ensure_health_file
from dspy_registry.registry_store.lease_file import ensure_lease_file
from dspy_registry.registry_store.lease_replacing import compact_large_lease_file
from dspy_registry.registry_store.outcome_kinds import ERROR, KINDS
from dspy_registry.registry_store.protocol import HealthRequest, OpenCircuit, ReportedOutcome, ReportOutcomes
from dspy_registry.writer.daemon.health_names import Names
from dspy_registry.writer.daemon.host import HealthObserver, Host

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
    host.health = keeper
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
        self._names = Names(host)
        self._circuits = Circuits(clock, chance, self._names.rules)
        self._outcomes = 0
        self._opened_count = self._closed_count = 0
        self._file = self._opened()
        _, rows = self._file.read()
        self._circuits.adopt(rows)
        self._published: Sequence[CircuitRow] = rows
        self._observers: list[HealthObserver] = []
        self._afar: dict[Key, tuple[str, int]] = {}  # which host's opening was taken over last, and its number here
        self._looked_at = -1  # the revision at which versions were last looked for

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
        """Count outcomes, or open or close by hand. Raises UnknownModuleError, UnknownVersionError."""
        if isinstance(request, ReportOutcomes):
            is_changed = [self._count(told) for told in request.outcomes]
        elif isinstance(request, OpenCircuit):
            name, version = self._names.asked(request.name, request.version)
            is_changed = [self._circuits.open_by_hand(name, version, request.seconds)]
        else:
            is_changed = [self._reset(request.name, request.version)]
        if any(is_changed):
            self._publish()

    def _reset(self, asked: str, version: int | None) -> bool:
        """Close by hand. The module may be unregistered meanwhile. Other hosts are told, whatever is known here."""
        has_circuit = bool(self._circuits.versions(asked))
        name = asked if has_circuit else self._names.asked(asked)[0]
        for observer in self._observers:
            observer.reset(name, version)
        return self._circuits.reset(name, version)

    # What other hosts say

    def observe(self, observer: HealthObserver) -> None:
        """Tell this observer of what this host opens and closes."""
        self._observers.append(observer)

    def rows(self) -> Sequence[CircuitRow]:
        """What is published now."""
        return self._published

    def open_from_afar(self, host: str, row: CircuitRow, seconds: float) -> None:
        """Open a circuit as another host has, for so long from now. Its level and what failed are in `row`."""
        key = row.name, row.version
        if self._circuits.open_from_afar(row, seconds, shortens=self._is_of(host, key)):
            self._afar[key] = host, self._circuits.openings(*key)
            self._publish(is_own=False)

    def close_from_afar(self, host: str, name: str, version: int, *, by_hand: bool) -> None:
        """Close what that host has opened and closed again. `by_hand`: also what another host has opened."""
        if (by_hand or self._is_of(host, (name, version))) and self._circuits.reset(name, version):
            self._publish(is_own=False)

    def _is_of(self, host: str, key: Key) -> bool:
        return self._afar.get(key) == (host, self._circuits.openings(*key))

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
        """Replace a file that was removed, and forget versions that are gone. `sweeps`: and what says nothing more."""
        if not self._file.is_current():
            former, self._file = self._file, self._opened()  # if it cannot be opened, the former stays in force
            former.retire()
            self._publish()
        if self._looked_at != self._host.revision:
            self._looked_at = self._host.revision
            gone = [(row.name, row.version) for row in self._published if not self._names.has(row.name, row.version)]
            if self._circuits.forget(gone):
                self._publish()
        if sweeps:
            self._circuits.sweep()
            self._afar = {key: of for key, of in self._afar.items() if self._circuits.openings(*key)}
            if len(self._circuits.rows()) != len(self._published):
                self._publish()

    def _opened(self) -> HealthFile:
        return ensure_health_file(self._host.environment.folder, self._host.files_group)

    def _publish(self, *, is_own: bool = True) -> None:
        """`is_own`: what has changed was seen, or asked for, on this host."""
        before, rows = self._published, self._circuits.rows()
        self._published = rows
        self._file.publish(rows)
        self._file.futex.wake_all()
        moved = list(moves(before, rows))
        self._tell(moved)
        for observer in self._observers if is_own else ():
            observer.moved(moved)

    def _tell(self, moved: Sequence[CircuitRow]) -> None:
        for row in moved:
            if row.until:
                self._opened_count += 1
                seconds = row.until - self._clock()
                _log.warning("%s version %d is not healthy (%s): calls go elsewhere for %.0f s", *_told(row), seconds)
            else:
                self._closed_count += 1
                _log.warning("%s version %d is healthy again (it was: %s)", *_told(row))


def moves(before: Sequence[CircuitRow], after: Sequence[CircuitRow]) -> Iterator[CircuitRow]:
    """The rows of circuits that have opened, or closed: `until` is 0 for those, also for what is forgotten now."""
    known = {(row.name, row.version): row for row in before}
    for row in after:
        was = known.pop((row.name, row.version), None)
        has_opened = row.until and (was is None or was.openings != row.openings)
        has_closed = not row.until and was is not None and was.until
        if has_opened or has_closed:
            yield row
    for row in known.values():
        if row.until:
            yield msgspec.structs.replace(row, until=0.0)


def _told(row: CircuitRow) -> tuple[str, int, str]:
    return row.name, row.version, row.last_kind
