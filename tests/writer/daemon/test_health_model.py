"""The daemon's health beside a model of it: windows, openings, probes, deadlines, policies, deaths, boots, lost files.

The keeper, its file and the registry are the real ones. The clock and the generator are injected, and so is the id of
the boot, because no test can boot the host.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspy_registry import ModuleInfo, Policy, RegistryWriter, UnknownModuleError, UnknownVersionError
from dspy_registry.registry_store import health_file
from dspy_registry.registry_store.circuit import DEFAULTS, CircuitRow, Outcome, rules_of
from dspy_registry.registry_store.health_file import HEALTH_FILE, HealthFile
from dspy_registry.registry_store.protocol import OpenCircuit, ReportedOutcome, ReportOutcomes, ResetCircuit
from dspy_registry.writer.daemon.health import HealthKeeper
from dspy_registry.writer.daemon.host import Host
from tests.support.health_model import HealthModel, Key

NAME, OTHER = "acme.Qa", "acme.Other"
ASKED: dict[tuple[str, ...], str | None] = {
    (NAME,): NAME,
    ("short",): NAME,
    ("acme.hidden.Qa", NAME): NAME,
    (OTHER,): OTHER,
    ("acme.Nobody",): None,
}
KEPT = {NAME: (1, 2), OTHER: (1,)}
POLICIES = (
    Policy(window_calls=3, minimum_failures=2, closing_calls=1),
    Policy(failure_share=1.0, window_seconds=30.0, open_seconds=2.0),
    Policy(window_calls=50, longest_open_seconds=16.0, healthy_seconds=100.0, closing_calls=3),
)
FAILING, ALL_KINDS = (
    ("timeout", "unavailable", "error"),
    ("ok", "rate_limited", "invalid_output", "caller", "cancelled"),
)


@dataclass
class HostOf:
    """What the keeper needs of a daemon, of a real writer."""

    writer: RegistryWriter
    files_group: int | None = None

    @property
    def environment(self) -> Any:
        return self.writer.store.environment

    @property
    def revision(self) -> int:
        return self.writer.revision


@dataclass
class Clock:
    now: float = 1024.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Chance:
    number: float = 0.5
    drawn: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        self.drawn.append(self.number)
        return self.number


names = st.sampled_from([(NAME,)] * 12 + list(ASKED))  # most of one module, so that much happens to it
versions = st.sampled_from((1, 1, 1, 1, 2, 9))
times = st.sampled_from((0.0, 0.0, 0.0, 0.25, 4.0, 64.0))


class HealthMachine(RuleBasedStateMachine):
    """Times are such that no sum of them is rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.place = tempfile.TemporaryDirectory()
        self.folder = Path(self.place.name) / "registry"
        self.clock, self.chance, self.boot = Clock(), Chance(), 1
        self.patched = mock.patch.object(health_file, "boot_id", side_effect=lambda: f"boot {self.boot}")
        self.patched.start()
        self.writer = RegistryWriter(self.folder)
        self.model = HealthModel()

    @initialize(policy=st.sampled_from((None, *POLICIES)))
    def begin(self, policy: Policy | None) -> None:
        for milliseconds in (1, 2):
            self.writer.register_module(ModuleInfo(NAME, estimated_duration=milliseconds))
        self.writer.register_module(ModuleInfo(OTHER))
        self.writer.set_alias("short", NAME)
        self.keeper = self.new_keeper()
        self.model.daemon_begins()
        if policy is not None:
            self.policy_changes(NAME, policy)

    def new_keeper(self) -> HealthKeeper:
        return HealthKeeper(cast(Host, HostOf(self.writer)), self.clock, self.chance)

    def teardown(self) -> None:
        self.patched.stop()
        self.writer.close()
        self.place.cleanup()

    # What happens

    @rule(seconds=st.sampled_from((0.25, 0.5, 4.0, 6.0, 30.0, 60.0, 61.0, 128.0, 301.0, 601.0)))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @precondition(lambda self: any(circuit.deadline for circuit in self.model.told.values()))
    @rule(beyond=st.sampled_from((-0.25, 0.0, 0.25)))
    def wait_for_a_deadline(self, beyond: float) -> None:
        deadline = min(circuit.deadline for circuit in self.model.told.values() if circuit.deadline)
        self.clock.now = max(self.clock.now, math.ceil(4 * deadline) / 4 + beyond)

    @precondition(lambda self: any(circuit.deadline is None for circuit in self.model.told.values()))
    @rule(beyond=st.sampled_from((-0.25, 0.0)))
    def outage_after_it_was_healthy_for_long(self, beyond: float) -> None:
        """Openings begin at the shortest again after that, and not before."""
        found = [(key, circuit) for key, circuit in self.model.told.items() if circuit.deadline is None]
        (name, version), circuit = found[0]
        self.clock.now = max(self.clock.now, circuit.changed + circuit.rules.healthy_seconds + beyond)
        self.outage((name,), version, 7, 0.5)

    @rule(
        names=names,
        version=versions,
        kind=st.one_of(st.sampled_from(FAILING), st.sampled_from(ALL_KINDS)),
        lasted=times,
        late=times,
        retry_after=st.sampled_from((0.0, 0.0, 2.0, 1000.0)),
        chance=st.sampled_from((0.0, 0.25, 0.5, 0.75)),
        count=st.integers(1, 6),
    )
    def calls_ended(
        self,
        names: tuple[str, ...],
        version: int,
        kind: str,
        lasted: float,
        late: float,
        retry_after: float,
        chance: float,
        count: int,
    ) -> None:
        self.chance.number = chance
        ended = self.clock.now - late
        told = ReportedOutcome(names, version, kind, ended - lasted, ended, retry_after)
        self.keeper.take(ReportOutcomes(1, (told,) * count))
        outcome = Outcome(ended - lasted, ended, kind, retry_after)
        self.model.report(self.key(names, version), (outcome,) * count, self.clock.now, chance)

    @rule(names=names, version=versions, count=st.integers(2, 7), chance=st.sampled_from((0.0, 0.25, 0.5)))
    def outage(self, names: tuple[str, ...], version: int, count: int, chance: float) -> None:
        self.calls_ended(names, version, "unavailable", 0.0, 0.0, 0.0, chance, count)

    @rule(
        version=st.sampled_from((1, 1, 2)),
        good=st.integers(0, 3),
        fails=st.booleans(),
        lasted=st.sampled_from((0.0, 0.0, 0.25)),
    )
    def probes_ended(self, version: int, good: int, fails: bool, lasted: float) -> None:
        """Calls that began once the circuit was half-open decide. Those that began before do not."""
        circuit = self.model.told.get((NAME, version))
        if circuit is not None and circuit.deadline:
            self.clock.now = max(self.clock.now, math.ceil(4 * circuit.deadline) / 4)
        if good:
            self.calls_ended((NAME,), version, "ok", lasted, 0.0, 0.0, 0.5, good)
        if fails:
            self.calls_ended((NAME,), version, "timeout", lasted, 0.0, 0.0, 0.5, 1)

    @rule(names=names, version=st.one_of(st.none(), versions), seconds=st.sampled_from((1.0, 600.0)))
    def operator_opens(self, names: tuple[str, ...], version: int | None, seconds: float) -> None:
        name = ASKED[names]
        if name is None:
            with pytest.raises(UnknownModuleError):
                self.keeper.take(OpenCircuit(1, names[-1], seconds, version))
            return
        if version is not None and version not in KEPT[name]:
            with pytest.raises(UnknownVersionError, match="Kept: "):
                self.keeper.take(OpenCircuit(1, names[-1], seconds, version))
            return
        self.keeper.take(OpenCircuit(1, names[-1], seconds, version))
        self.model.open_by_hand((name, version or KEPT[name][-1]), self.clock.now, seconds)

    @rule(name=st.sampled_from((NAME, OTHER)), version=st.one_of(st.none(), versions))
    def operator_resets(self, name: str, version: int | None) -> None:
        self.keeper.take(ResetCircuit(1, name, version))
        self.model.reset(name, version, self.clock.now)

    @rule(name=st.sampled_from((NAME, NAME, OTHER)), policy=st.sampled_from((None, *POLICIES)))
    def policy_changes(self, name: str, policy: Policy | None) -> None:
        if policy is None:
            self.writer.remove_policy(name)
        else:
            self.writer.set_policy(name, policy)
        self.model.change_rules(name, DEFAULTS if policy is None else rules_of(policy))

    @rule(sweeps=st.booleans())
    def keeper_looks(self, sweeps: bool) -> None:
        self.keeper.look(sweeps=sweeps)
        if sweeps:
            self.model.sweep(self.clock.now)

    @rule()
    def file_is_removed(self) -> None:
        """The keeper puts another one in its place when it looks."""
        (self.folder / HEALTH_FILE).unlink()
        self.keeper.look(sweeps=False)
        self.model.tell(self.clock.now)

    @rule(how=st.sampled_from(("killed", "killed", "killed", "amid writing", "boot", "file lost", "file damaged")))
    def another_daemon_begins(self, how: str) -> None:
        if how == "amid writing":  # then the place that no reader uses has half a list
            self.scribble(1, 0)
        elif how == "boot":  # times of the earlier boot mean nothing: the clock begins again
            self.boot += 1
            self.clock.now = 8.0
        elif how == "file lost":
            (self.folder / HEALTH_FILE).unlink()
        elif how == "file damaged":
            self.scribble(0, 8)
        if how in ("boot", "file lost", "file damaged"):
            self.model.forget()
        self.keeper = self.new_keeper()
        self.model.daemon_begins()

    def scribble(self, ahead: int, offset: int) -> None:
        file = HealthFile(self.folder, writable=True)
        place = health_file._place(file.word[()] + ahead) + offset
        file._map[place : place + 16] = b"\xff" * 16

    # What everybody sees

    @invariant()
    def readers_see_what_the_model_tells(self) -> None:
        if not hasattr(self, "keeper"):
            return
        rows = {(row.name, row.version): row for row in HealthFile(self.folder).read()[1]}
        assert rows.keys() == self.model.told.keys()
        for key, row in rows.items():
            self.agree(key, row)
        unhealthy = sum(self.model.state(key, self.clock.now) != "closed" for key in self.model.told)
        status = self.keeper.status()
        assert (status["unhealthy"], status["outcomes"]) == (unhealthy, self.model.counted)

    def agree(self, key: Key, row: CircuitRow) -> None:
        told = self.model.told[key]
        assert (row.since, row.openings) == (told.changed, told.openings)
        if told.deadline is None:
            assert not row.until
            return
        assert row.until == pytest.approx(told.deadline, abs=1e-6)
        for circuit in (told, self.model.known[key]):  # so that rounding decides nothing later
            circuit.deadline = row.until
        for moment in (row.since, row.until - 0.001, row.until, row.until + 0.001, self.clock.now):
            assert row.state(moment) == told.state(moment)

    def key(self, names: tuple[str, ...], version: int) -> Key | None:
        name = ASKED[names]
        return (name, version) if name is not None and version in KEPT[name] else None


def runs(examples: int, steps: int) -> settings:
    return settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck)
    )


HealthMachine.TestCase.settings = runs(20, 40)


class TestHealth(HealthMachine.TestCase):  # type: ignore[misc, name-defined]
    """Runs with `make test`."""


@pytest.mark.full
@pytest.mark.timeout(600)
class TestHealthAtLength(HealthMachine.TestCase):  # type: ignore[misc, name-defined]
    settings = runs(150, 80)
