"""The circuit: what opens and closes it, and that a restarted daemon goes on with it; against a plain model."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dspy_registry.registry_store.circuit import (
    CLOSED,
    DEFAULTS,
    HALF_OPEN,
    OPEN,
    OPERATOR,
    Circuit,
    CircuitRules,
    Outcome,
    rules_of,
)
from dspy_registry.registry_store.circuits import Circuits
from dspy_registry.registry_store.policy import Policy
from tests.support.circuit_model import CircuitModel

KINDS = ("ok", "timeout", "rate_limited", "unavailable", "error", "invalid_output", "caller", "cancelled")
RULES = (DEFAULTS, CircuitRules(window_calls=3, minimum_failures=2, closing_calls=1), CircuitRules(failure_share=1.0))


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def fail(circuit: Circuit, now: float, times: int = 1, kind: str = "error", retry_after: float = 0.0) -> list[bool]:
    return [circuit.record(Outcome(now, now, kind, retry_after), now, DEFAULTS, 0.5) for _ in range(times)]


class CircuitMachine(RuleBasedStateMachine):
    """The circuit and its model are told the same; daemons die, hosts reboot, operators meddle."""

    @initialize(rules=st.sampled_from(RULES))
    def begin(self, rules: CircuitRules) -> None:
        self.rules = rules
        self.clock = Clock()
        self.chance = 0.5
        self.reboot()

    @rule()
    def reboot(self) -> None:
        """What was published is of another boot: nothing of it counts."""
        self.circuits = self.new_daemon()
        self.model = CircuitModel(self.rules)

    def new_daemon(self) -> Circuits:
        return Circuits(self.clock, lambda: self.chance, lambda name: self.rules)

    @rule(seconds=st.sampled_from((0.01, 0.5, 4.0, 6.0, 30.0, 61.0, 300.0, 601.0)))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(
        kind=st.sampled_from(KINDS),
        lasted=st.sampled_from((0.0, 0.3, 5.0, 50.0)),
        late=st.sampled_from((0.0, 0.0, 1.0, 70.0)),
        retry_after=st.sampled_from((0.0, 0.0, 2.0, 1000.0)),
        chance=st.floats(0, 1, exclude_max=True),
        times=st.integers(1, 6),
    )
    def call_ended(self, kind: str, lasted: float, late: float, retry_after: float, chance: float, times: int) -> None:
        self.chance = chance
        ended = self.clock.now - late
        outcome = Outcome(ended - lasted, ended, kind, retry_after)
        for _ in range(times):
            before = (self.model.changed, self.model.openings, self.model.deadline)
            self.model.record(outcome, self.clock.now, chance)
            changed = before != (self.model.changed, self.model.openings, self.model.deadline)
            assert self.circuits.record("a.B", 1, outcome) == changed

    @rule(seconds=st.sampled_from((1.0, 600.0)))
    def operator_opens(self, seconds: float) -> None:
        self.circuits.open_by_hand("a.B", 1, seconds)
        self.model.open_by_hand(self.clock.now, seconds)

    @rule()
    def operator_resets(self) -> None:
        if self.circuits.rows():
            self.circuits.reset("a.B")
            self.model.reset(self.clock.now)

    @rule()
    def daemon_is_killed(self) -> None:
        """The next one adopts what is published: all but the window and the probes that went well."""
        published = self.circuits.rows()
        self.circuits = self.new_daemon()
        self.circuits.adopt(published)
        self.model.history, self.model.good_probes = [], 0
        if not published:
            self.model = CircuitModel(self.rules)

    @rule()
    def sweep(self) -> None:
        """Nothing is lost by it, but what counts no more: the model keeps all for ever."""
        rows = self.circuits.rows()
        self.circuits.sweep()
        assert self.circuits.rows() == rows
        if not rows and self.model.deadline is None and not self.circuits._circuits:
            self.model = CircuitModel(self.rules)

    @invariant()
    def both_agree(self) -> None:
        now = self.clock.now
        assert self.circuits.state("a.B", 1) == self.model.state(now)
        rows = {row.name: row for row in self.circuits.rows()}
        if self.model.deadline is None:
            assert "a.B" not in rows or not rows["a.B"].until
        else:
            row = rows["a.B"]
            assert row.until == pytest.approx(self.model.deadline)
            assert (row.since, row.openings) == (self.model.changed, self.model.openings)
            assert row.until - row.since <= max(self.rules.longest_open_seconds, 600.0) + 1e-6


CircuitMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestCircuitMachine = CircuitMachine.TestCase


def test_fewer_than_five_failures_never_open_it() -> None:
    circuit = Circuit()
    assert fail(circuit, 10.0, 4) == [False] * 4
    assert fail(circuit, 10.0) == [True]


def test_half_of_the_window_opens_it_and_less_does_not() -> None:
    for successes, failures, opens in ((6, 5, False), (5, 5, True), (20, 9, False), (20, 10, True)):
        circuit = Circuit()
        fail(circuit, 10.0, successes, "ok")
        assert fail(circuit, 10.0, failures)[-1] is opens


def test_old_outcomes_do_not_count() -> None:
    circuit = Circuit()
    fail(circuit, 10.0, 4)
    assert fail(circuit, 70.1) == [False]


def test_it_is_open_for_five_seconds_doubled_each_time_and_never_above_the_longest() -> None:
    circuit, now, lengths = Circuit(), 10.0, []
    fail(circuit, now, 5)
    for _ in range(9):
        lengths.append(circuit.until - now)
        now = circuit.until
        assert circuit.state(now) == HALF_OPEN
        assert fail(circuit, now) == [True]
    assert lengths == [5, 10, 20, 40, 80, 160, 300, 300, 300]


@pytest.mark.parametrize(("chance", "length"), [(0.0, 4.0), (0.5, 5.0), (1.0 - 2**-53, 6.0)])
def test_jitter_is_a_fifth_to_either_side(chance: float, length: float) -> None:
    circuit = Circuit()
    for _ in range(5):
        circuit.record(Outcome(9.0, 10.0, "timeout"), 10.0, DEFAULTS, chance)
    assert circuit.until - 10.0 == pytest.approx(length)


def test_ten_healthy_minutes_begin_again_at_the_shortest() -> None:
    for healthy, length in ((599.0, 10.0), (600.0, 5.0)):
        circuit = Circuit()
        fail(circuit, 10.0, 5)
        fail(circuit, 20.0, 2, "ok")
        assert circuit.state(20.0) == CLOSED
        fail(circuit, 20.0 + healthy, 5)
        assert circuit.until - circuit.since == pytest.approx(length)


def test_rate_limited_with_a_retry_after_opens_at_once_for_that_long() -> None:
    for named, length in ((12.5, 12.5), (3600.0, 300.0)):
        circuit = Circuit()
        assert fail(circuit, 10.0, 1, "rate_limited", named) == [True]
        assert (circuit.until - 10.0, circuit.level) == (length, 0)


def test_a_call_counts_only_if_it_began_after_the_present_state() -> None:
    circuit = Circuit()
    fail(circuit, 10.0, 5)
    late = Outcome(12.0, 15.5, "error")  # began while it was open, ended when it was half-open
    assert not circuit.record(late, 15.5, DEFAULTS, 0.5)
    assert circuit.state(15.5) == HALF_OPEN
    assert fail(circuit, 15.5, 2, "ok") == [False, True]
    assert not circuit.record(Outcome(15.2, 16.0, "error"), 16.0, DEFAULTS, 0.5)
    assert not circuit._window


def test_an_operator_opens_and_resets() -> None:
    circuit = Circuit()
    assert circuit.open_by_hand(10.0, 600.0)
    assert (circuit.state(609.0), circuit.state(610.0), circuit.last_kind) == (OPEN, HALF_OPEN, OPERATOR)
    assert circuit.reset(20.0)
    assert not circuit.reset(21.0)
    assert circuit.state(21.0) == CLOSED


def test_a_policy_changes_the_numbers() -> None:
    assert rules_of(Policy()) == DEFAULTS
    policy = Policy(minimum_failures=2, open_seconds=1.5, max_concurrency=3)
    assert rules_of(policy) == msgspec.structs.replace(DEFAULTS, minimum_failures=2, open_seconds=1.5)


def test_a_window_holds_the_failures_that_open_the_circuit() -> None:
    rules = rules_of(Policy(minimum_failures=30))  # 20 calls are looked at by default
    circuit = Circuit()
    opened = [circuit.record(Outcome(call, call, "error"), call, rules, 0.5) for call in range(1, 31)]
    assert opened == [False] * 29 + [True]


def test_the_document_names_every_default() -> None:
    text = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")
    for field in CircuitRules.__struct_fields__:
        assert f"| `{field}` | {getattr(DEFAULTS, field):g} |" in text
