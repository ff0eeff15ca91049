"""The circuit of one module version: closed, or open until a deadline, then half-open until further calls decide.

A pure state machine. The caller passes the time as `now`, and draws the random number `chance`. So the daemon, a
process without a daemon, and a test run the same code. Times are seconds on the boot-time clock.
"""

from __future__ import annotations

from bisect import insort
from typing import Final, Literal

import msgspec

from dspy_registry.registry_store.policy import Policy

State = Literal["closed", "open", "half_open"]
CLOSED: Final = "closed"
OPEN: Final = "open"
HALF_OPEN: Final = "half_open"

OPERATOR: Final = "operator"
"""The `last_kind` of a circuit that was opened by hand."""

FAILURES: Final = frozenset(("timeout", "rate_limited", "unavailable", "error"))
NEITHER: Final = frozenset(("caller", "cancelled"))
"""Kinds that say nothing about the provider. Any kind in neither set shows that the provider answered."""

JITTER: Final = 0.2
_LARGEST_LEVEL: Final = 64


class CircuitRules(msgspec.Struct, frozen=True):
    """When a circuit opens and closes. `Policy` says what each number means, docs/health.md gives the reasons."""

    failure_share: float = 0.5
    window_calls: int = 20
    window_seconds: float = 60.0
    minimum_failures: int = 5
    open_seconds: float = 5.0
    longest_open_seconds: float = 300.0
    healthy_seconds: float = 600.0
    closing_calls: int = 2


DEFAULTS: Final = CircuitRules()


def rules_of(policy: Policy) -> CircuitRules:
    """The default rules, changed by the fields that a policy sets.

    Fields come from several policies. A window shorter than `minimum_failures` could never open a circuit, so it is
    made as long.
    """
    set_there = {field: getattr(policy, field) for field in CircuitRules.__struct_fields__}
    changes = {field: value for field, value in set_there.items() if value is not None}
    rules = msgspec.structs.replace(DEFAULTS, **changes) if changes else DEFAULTS
    if rules.window_calls >= rules.minimum_failures:
        return rules
    return msgspec.structs.replace(rules, window_calls=rules.minimum_failures)


class Outcome(msgspec.Struct, frozen=True, gc=False):
    """A call that ended: when it began and ended, and how. `retry_after` in seconds; 0: the provider named none."""

    began: float
    ended: float
    kind: str
    retry_after: float = 0.0


class CircuitRow(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of a circuit that is open or half-open, or was so recently. Times are seconds since this boot.

    `since` is when the state began. `until` is the deadline, after which an open circuit is half-open; 0: closed.
    `level` is how many times the length of the next opening is doubled. `openings` counts them. `failures` is how many
    calls of the window failed when it opened.
    """

    name: str
    version: int
    since: float
    until: float
    level: int
    openings: int
    failures: int
    last_kind: str

    def state(self, now: float) -> State:
        """The state at a moment."""
        return state_at(self.until, now)


def state_at(until: float, now: float) -> State:
    """The state at a moment of a circuit with this deadline; 0: it is closed."""
    if not until:
        return CLOSED
    return OPEN if now < until else HALF_OPEN


class Circuit:
    """One circuit. Each method that may change the state returns True if it did."""

    __slots__ = ("_window", "failures", "last_kind", "level", "openings", "since", "successes", "until")

    def __init__(self, since: float = 0.0) -> None:
        self.since = since  # when the state began; 0: it never changed
        self.until = 0.0
        self.level = 0
        self.openings = 0
        self.failures = 0
        self.last_kind = ""
        self.successes = 0
        self._window: list[tuple[float, bool]] = []  # (ended, failed), oldest first

    def __repr__(self) -> str:
        return f"Circuit(since={self.since}, until={self.until}, level={self.level}, openings={self.openings})"

    def state(self, now: float) -> State:
        """The state at a moment: an open circuit becomes half-open by itself."""
        return state_at(self.until, now)

    def record(self, outcome: Outcome, now: float, rules: CircuitRules, chance: float) -> bool:
        """Count a call that ended. `chance` is a number from 0 to below 1, drawn for this call of `record`.

        It counts only if it began after the present state began.
        """
        state = self.state(now)
        if outcome.kind in NEITHER or state == OPEN or outcome.began < self._began(state):
            return False
        failed = outcome.kind in FAILURES
        if failed:
            self.last_kind = outcome.kind
        if failed and outcome.kind == "rate_limited" and outcome.retry_after > 0:
            return self._open_for(min(outcome.retry_after, rules.longest_open_seconds), now, failures=1)
        if state == HALF_OPEN:
            return self._open(now, rules, chance, failures=1) if failed else self._succeed(now, rules)
        return self._count(outcome, failed, now, rules, chance)

    def open_by_hand(self, now: float, seconds: float) -> bool:
        """Open it for this many seconds, although no call failed."""
        self.last_kind = OPERATOR
        return self._open_for(seconds, now, failures=0)

    def open_from_afar(self, now: float, seconds: float, row: CircuitRow, *, shortens: bool) -> bool:
        """Open it for this many seconds, as another host has, whose `row` it is.

        An opening that ends later stands, unless `shortens`: it came from that host, too.
        """
        if self.until > now + seconds and not shortens:
            return False
        self.last_kind, self.level = row.last_kind, min(max(self.level, row.level), _LARGEST_LEVEL)
        return self._open_for(seconds, now, row.failures)

    def reset(self, now: float) -> bool:
        """Close it, and forget the calls that opened it and its level."""
        changed = bool(self.until or self.level)
        self._close(now)
        self.level = 0
        return changed

    def is_quiet(self, now: float, rules: CircuitRules) -> bool:
        """Whether it holds no information any more, so that it may be forgotten."""
        if self.until or (self.since and now - self.since < rules.healthy_seconds):
            return False
        return not self._window or now - self._window[-1][0] > rules.window_seconds

    def row(self, name: str, version: int) -> CircuitRow:
        """The row to publish. `adopted` takes it."""
        return CircuitRow(
            name, version, self.since, self.until, self.level, self.openings, self.failures, self.last_kind
        )

    @classmethod
    def adopted(cls, row: CircuitRow) -> Circuit:
        """The circuit that a row describes, with an empty window."""
        circuit = cls(row.since)
        circuit.until, circuit.level, circuit.openings = row.until, row.level, row.openings
        circuit.failures, circuit.last_kind = row.failures, row.last_kind
        return circuit

    def _began(self, state: State) -> float:
        return self.until if state == HALF_OPEN else self.since

    def _count(self, outcome: Outcome, failed: bool, now: float, rules: CircuitRules, chance: float) -> bool:
        # In the order in which calls ended: successes arrive in batches, later than failures.
        insort(self._window, (min(outcome.ended, now), failed))
        del self._window[: -rules.window_calls]
        if not failed:
            return False  # a success never opens it, even if older successes now leave the window
        recent = [item for item in self._window if now - item[0] <= rules.window_seconds]
        failures = sum(failed for _, failed in recent)
        if failures < max(rules.minimum_failures, rules.failure_share * len(recent)):
            return False
        return self._open(now, rules, chance, failures)

    def _succeed(self, now: float, rules: CircuitRules) -> bool:
        self.successes += 1
        if self.successes < rules.closing_calls:
            return False
        self._close(now)
        return True

    def _open(self, now: float, rules: CircuitRules, chance: float, failures: int) -> bool:
        if not self.until and now - self.since >= rules.healthy_seconds:
            self.level = 0
        length = rules.open_seconds * 2.0**self.level * (1 - JITTER + 2 * JITTER * chance)
        self.level = min(self.level + 1, _LARGEST_LEVEL)
        return self._open_for(min(length, rules.longest_open_seconds), now, failures)

    def _open_for(self, seconds: float, now: float, failures: int) -> bool:
        self.since, self.until = now, now + seconds
        self.openings += 1
        self.failures = failures
        self.successes = 0
        self._window = []
        return True

    def _close(self, now: float) -> None:
        self.since, self.until = now, 0.0
        self.successes = 0
        self.failures = 0
        self._window = []
