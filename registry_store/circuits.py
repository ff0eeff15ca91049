"""All circuits that one process keeps. The daemon keeps those of the host, a process without a daemon its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from dspy_registry.registry_store.circuit import (
    CLOSED,
    DEFAULTS,
    Circuit,
    CircuitRow,
    CircuitRules,
    Outcome,
    State,
)

Key = tuple[str, int]
"""Module name and version."""


class Circuits:
    """Circuits by module version. `clock` gives boot-time seconds, `chance` a number from 0 to below 1.

    `rules` gives the rules of a module. A method returns True if it changed what `rows` gives. Not safe for threads.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        chance: Callable[[], float],
        rules: Callable[[str], CircuitRules] = lambda name: DEFAULTS,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._rules = rules
        self._circuits: dict[Key, Circuit] = {}

    def record(self, name: str, version: int, outcome: Outcome) -> bool:
        """Count a call that ended."""
        rules = self._rules(name)
        return self._of(name, version).record(outcome, self._clock(), rules, self._chance())

    def open_by_hand(self, name: str, version: int, seconds: float) -> bool:
        """Open a circuit for this long."""
        return self._of(name, version).open_by_hand(self._clock(), seconds)

    def open_from_afar(self, row: CircuitRow, seconds: float, *, shortens: bool) -> bool:
        """Open the circuit of a row of another host for this long, from now."""
        circuit = self._of(row.name, row.version)
        return circuit.open_from_afar(self._clock(), seconds, row, shortens=shortens)

    def openings(self, name: str, version: int) -> int:
        """How often a circuit has opened."""
        circuit = self._circuits.get((name, version))
        return 0 if circuit is None else circuit.openings

    def versions(self, name: str) -> list[int]:
        """The versions of a module that have a circuit."""
        return [version for of, version in self._circuits if of == name]

    def forget(self, keys: Iterable[Key]) -> bool:
        """Forget circuits, whatever they know."""
        return sum(self._circuits.pop(key, None) is not None for key in keys) > 0

    def reset(self, name: str, version: int | None = None) -> bool:
        """Close the circuit and forget the calls that opened it. `version` None: of every version."""
        now = self._clock()
        chosen = [circuit for key, circuit in self._circuits.items() if key[0] == name and version in (None, key[1])]
        return sum(circuit.reset(now) for circuit in chosen) > 0

    def state(self, name: str, version: int) -> State:
        """The state of a circuit now."""
        circuit = self._circuits.get((name, version))
        return circuit.state(self._clock()) if circuit is not None else CLOSED

    def adopt(self, rows: Iterable[CircuitRow]) -> None:
        """Go on with the circuits that an earlier daemon published since this boot."""
        for row in rows:
            self._circuits[row.name, row.version] = Circuit.adopted(row)

    def rows(self) -> list[CircuitRow]:
        """The rows to publish: circuits that are open or half-open, or closed so recently that their level counts."""
        now = self._clock()
        return [
            circuit.row(name, version)
            for (name, version), circuit in sorted(self._circuits.items())
            if circuit.until or (circuit.level and now - circuit.since < self._rules(name).healthy_seconds)
        ]

    def sweep(self) -> None:
        """Forget the circuits that hold no information any more. Once a minute is often enough."""
        now = self._clock()
        quiet = [key for key, circuit in self._circuits.items() if circuit.is_quiet(now, self._rules(key[0]))]
        for key in quiet:
            del self._circuits[key]

    def _of(self, name: str, version: int) -> Circuit:
        circuit = self._circuits.get((name, version))
        if circuit is None:
            circuit = self._circuits[name, version] = Circuit()
        return circuit
