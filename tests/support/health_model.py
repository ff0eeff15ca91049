"""What the health of a host is to be, as plainly as can be: circuits in a dict, and what the last list told of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from dspy_registry.registry_store.circuit import DEFAULTS, CircuitRules, Outcome
from tests.support.circuit_model import CircuitModel

Key = tuple[str, int]


@dataclass
class HealthModel:
    """`known` is of the daemon that runs, `told` what the file holds. A daemon's death ends the first alone."""

    rules: dict[str, CircuitRules] = field(default_factory=dict)
    known: dict[Key, CircuitModel] = field(default_factory=dict)
    told: dict[Key, CircuitModel] = field(default_factory=dict)
    counted: int = 0

    def report(self, key: Key | None, outcomes: Iterable[Outcome], now: float, chance: float) -> None:
        """One message of a reporter. `key` None: nobody knows the module, or the version is not kept."""
        is_changed = False
        for outcome in outcomes if key is not None else ():
            assert key is not None
            self.counted += 1
            circuit = self._of(key)
            before = (circuit.changed, circuit.openings, circuit.deadline)
            circuit.record(outcome, now, chance)
            is_changed |= before != (circuit.changed, circuit.openings, circuit.deadline)
        if is_changed:
            self.tell(now)

    def open_by_hand(self, key: Key, now: float, seconds: float) -> None:
        self._of(key).open_by_hand(now, seconds)
        self.tell(now)

    def reset(self, name: str, version: int | None, now: float) -> None:
        is_changed = False
        for key, circuit in self.known.items():
            if key[0] == name and version in (None, key[1]):
                is_changed |= circuit.deadline is not None or circuit.doublings > 0
                circuit.reset(now)
        if is_changed:
            self.tell(now)

    def change_rules(self, name: str, rules: CircuitRules) -> None:
        """A policy came into force. What had left the window does not come back into a longer one."""
        self.rules[name] = rules
        for key, circuit in self.known.items():
            if key[0] == name:
                circuit.history = sorted(circuit.history)[-circuit.rules.window_calls :]
                circuit.rules = rules

    def sweep(self, now: float) -> None:
        """Whatever has had no news for so long that it decides nothing any more is forgotten."""
        self.known = {key: circuit for key, circuit in self.known.items() if not self._is_over(circuit, now)}
        if len(self._worth_telling(now)) < len(self.told):
            self.tell(now)

    def tell(self, now: float) -> None:
        """The daemon publishes what another one would have to know."""
        self.told = {key: replace(circuit) for key, circuit in self._worth_telling(now).items()}

    def daemon_begins(self) -> None:
        """It knows what was told; windows, and probes that went well, are lost."""
        self.counted = 0
        self.known = {key: replace(circuit, history=[], good_probes=0) for key, circuit in self.told.items()}
        for (name, _), circuit in self.known.items():
            circuit.rules = self.rules.get(name, DEFAULTS)

    def forget(self) -> None:
        """The host has booted, or the file was lost while no daemon ran."""
        self.told = {}

    def state(self, key: Key, now: float) -> str:
        circuit = self.told.get(key)
        return "closed" if circuit is None else circuit.state(now)

    def _of(self, key: Key) -> CircuitModel:
        return self.known.setdefault(key, CircuitModel(self.rules.get(key[0], DEFAULTS)))

    def _worth_telling(self, now: float) -> dict[Key, CircuitModel]:
        return {
            key: circuit
            for key, circuit in self.known.items()
            if circuit.deadline is not None
            or (circuit.doublings and now < circuit.changed + circuit.rules.healthy_seconds)
        }

    def _is_over(self, circuit: CircuitModel, now: float) -> bool:
        never_changed = not circuit.changed
        is_healthy = circuit.deadline is None and (
            never_changed or now >= circuit.changed + circuit.rules.healthy_seconds
        )
        return is_healthy and all(ended + circuit.rules.window_seconds < now for ended, _ in circuit.history)
