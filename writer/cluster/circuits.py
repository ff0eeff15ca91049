"""Circuits known on every host: what one host opens, the others open too, each for the cooldown by its own clock.

    a host opens or closes -> its key d/c/NAME/VERSION/HOST -> watch -> the circuits of every other host

The value holds the cooldown's length, and a host counts it from when it saw the key. Its lease only clears the key
away. Closing puts a value first that says so, then removes the key: a key that is merely gone closes nothing.
What was taken over from another host is not told again.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.circuits import Key
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryError
from dspy_registry.writer.cluster.engine import Engine, KeyValue, LeaseGoneError
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.observer import Observer
from dspy_registry.writer.daemon.host import Health

_LONGER: Final = 20.0
"""Seconds that a lease is longer than the cooldown, for hosts to see the key while etcd finds a leader."""
_LONGEST_LEASE: Final = 9_000_000_000  # seconds: etcd's own limit
_AT_ONCE: Final = 60  # keys in one transaction
_PAUSE: Final = 0.5  # seconds, after a failure

_log = logging.getLogger("dspy_registry")


class GlobalCircuit(msgspec.Struct, frozen=True, array_like=True):
    """The value of a circuit's key. `seconds` is the length of its cooldown; 0: it is closed.

    `by_hand`: an operator has closed it, for all hosts.
    """

    seconds: float
    failures: int = 0
    last_kind: str = ""
    level: int = 0
    by_hand: bool = False


_codec: Final = SealedAlone(GlobalCircuit, "a circuit of the cluster")


class _Move(NamedTuple):
    """What is to be told of a circuit. `by_hand`: an operator has closed it."""

    row: CircuitRow
    by_hand: bool = False


class SharedCircuits(Observer):
    """Belongs to the daemon's loop. `aside` has the keys that this release cannot read, with the reason.

    `clock` gives boot-time seconds.
    """

    def __init__(self, engine: Engine, keys: Keys, health: Health, clock: Callable[[], float] = boot_seconds) -> None:
        super().__init__(keys.circuits)
        self._engine = engine
        self._keys = keys
        self._health = health
        self._clock = clock
        self._known: dict[bytes, int] = {}  # the revision of each key
        self._own: set[Key] = set()  # circuits that this host has told of
        self._to_tell: dict[Key, _Move] = {}
        self._wakes = asyncio.Event()
        self.aside: dict[str, str] = {}
        self.error = ""
        health.observe(self)

    @property
    def count(self) -> int:
        """Keys of circuits that the cluster has now."""
        return len(self._known)

    # What this host learns: see `HealthObserver`

    def moved(self, rows: Sequence[CircuitRow]) -> None:
        """See `HealthObserver.moved`."""
        for row in rows:
            key = row.name, row.version
            if row.until or key in self._own or key in self._to_tell:
                self._tell(key, _Move(row))

    def reset(self, name: str, version: int | None) -> None:
        """See `HealthObserver.reset`. Versions that have a circuit on some host are closed there."""
        versions = {row.version for row in self._health.rows() if row.name == name}
        versions |= {of for known, of, _ in map(self._split, self._known) if known == name}
        for each in versions if version is None else (version,):
            self._tell((name, each), _Move(_closed(name, each), by_hand=True))

    def _tell(self, key: Key, move: _Move) -> None:
        before = self._to_tell.pop(key, None)
        is_by_hand = move.by_hand or (before is not None and before.by_hand and not move.row.until)
        self._to_tell[key] = move._replace(by_hand=is_by_hand)
        self._wakes.set()

    async def run(self) -> None:
        """Tell the cluster what this host learns, until cancelled."""
        while True:
            await self._wakes.wait()
            self._wakes.clear()
            while self._to_tell:
                await self._tell_some()

    async def _tell_some(self) -> None:
        moves = dict(islice(self._to_tell.items(), _AT_ONCE))
        try:
            await self._put({key: self._value(move) for key, move in moves.items()})
        except (RegistryError, LeaseGoneError) as error:
            if not self.error:
                _log.warning("other hosts cannot be told of circuits: %s", error)
            self.error = str(error)
            await asyncio.sleep(_PAUSE)
            return
        self.error = ""
        for key, move in moves.items():
            if self._to_tell.get(key) is move:
                del self._to_tell[key]

    async def _put(self, values: Mapping[Key, GlobalCircuit]) -> None:
        """Put these circuits with one lease. The keys of those that are closed are removed behind it."""
        longest = max(value.seconds for value in values.values())
        lease = await self._engine.lease(min(math.ceil(longest + _LONGER), _LONGEST_LEASE))
        puts = {self._keys.circuit(*key): _codec.dump(value) for key, value in values.items()}
        self._own.update(values)
        await self._engine.transact({}, puts, leased=dict.fromkeys(puts, lease))
        closed = [
            self._keys.circuit(*key, "" if value.by_hand else None)
            for key, value in values.items()
            if value.seconds == 0
        ]
        if closed:
            await self._engine.transact({}, {}, removed=closed)
            self._own.difference_update(key for key, value in values.items() if value.seconds == 0)

    def _value(self, move: _Move) -> GlobalCircuit:
        row = move.row
        left = max(0.0, row.until - self._clock()) if row.until else 0.0
        return GlobalCircuit(left, row.failures, row.last_kind, row.level, move.by_hand)

    # What other hosts have learned: see `Observer`

    async def take_all(self, items: Sequence[KeyValue]) -> None:
        """Open what other hosts have opened and this one has not seen, for as long as the lease has left."""
        self.aside.clear()
        before, self._known = self._known, {}
        for item in items:
            if before.get(item.key) == item.revision:
                self._known[item.key] = item.revision
            elif (read := self._read(item)) is not None:
                self._apply(item, *read, longest=await self._left(item))
        self._close_what_is_left()

    def _close_what_is_left(self) -> None:
        """Keys that an earlier daemon of this host left, of circuits that are not open here."""
        opened = {(row.name, row.version) for row in self._health.rows() if row.until}
        for name, version, host in map(self._split, self._known):
            if host == self._keys.host.decode() and (name, version) not in opened:
                self._own.add((name, version))
                self._tell((name, version), _Move(_closed(name, version)))

    async def _left(self, item: KeyValue) -> float:
        """The longest that a cooldown can still last: a key that a list finds may be as old as its lease."""
        if not item.lease:
            return math.inf
        try:
            return max(0.0, await self._engine.lease_left(item.lease) - _LONGER)
        except LeaseGoneError:
            return 0.0

    def take(self, change: KeyValue) -> None:
        """See `Observer.take`."""
        if change.value is None:
            self._known.pop(change.key, None)
            self.aside.pop(self._shown(change.key), None)
        elif (read := self._read(change)) is not None:
            self._apply(change, *read)

    def _read(self, item: KeyValue) -> tuple[tuple[str, int, str], GlobalCircuit] | None:
        """Whose circuit it is, and what is said of it. None: this release cannot read it, which is told."""
        try:
            place, said = self._keys.split_circuit(item.key), _codec.load(item.value or b"")
            if not 0 <= said.seconds < math.inf:
                raise ValueError(f"{said.seconds!r} is no length of a cooldown")
        except (ValueError, CorruptRecordError) as error:
            shown, reason = self._shown(item.key), getattr(error, "message", str(error))
            _log.warning("%s of the cluster is not understood: %s", shown, reason)
            self.aside[shown] = reason
            return None
        self.aside.pop(self._shown(item.key), None)
        return place, said

    def _apply(
        self, item: KeyValue, place: tuple[str, int, str], said: GlobalCircuit, longest: float = math.inf
    ) -> None:
        self._known[item.key] = item.revision
        name, version, host = place
        if host == self._keys.host.decode():
            return
        seconds = min(said.seconds, longest)
        if said.seconds == 0:
            self._health.close_from_afar(host, name, version, by_hand=said.by_hand)
        elif seconds > 0:
            row = CircuitRow(name, version, 0.0, 0.0, said.level, 0, said.failures, said.last_kind)
            self._health.open_from_afar(host, row, seconds)

    def _split(self, key: bytes) -> tuple[str, int, str]:
        return self._keys.split_circuit(key)

    def _shown(self, key: bytes) -> str:
        return f"circuits/{key[len(self.prefix) :].decode('utf-8', 'replace')}"


def _closed(name: str, version: int) -> CircuitRow:
    return CircuitRow(name, version, 0.0, 0.0, 0, 0, 0, "")
