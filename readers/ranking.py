"""Which of several modules to call: what is left out and why, and the rest in order. Pure; docs/routing.md says why.

excluded, for the first reason that holds: exclude, deadline, cost, filter, health
ranked by prefer, half-open circuits last; ties in the order given
nothing left: of those that only their health excluded, the one whose circuit ends first
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import sqrt
from typing import Any, Final, Literal

from msgspec import Struct

from dspy_registry.registry_store.circuit import HALF_OPEN, OPEN, State
from dspy_registry.registry_store.errors import InvalidArgumentError

Identity = tuple[str, int]
"""A candidate: the full name of its module, and the version."""

Reason = Literal["exclude", "deadline", "cost", "cost_unknown", "filter", "preference", "health"]
Unit = Literal["usd", "compute_seconds"]
USD: Final = "usd"
COMPUTE_SECONDS: Final = "compute_seconds"

PREFERENCES: Final = ("balanced", "latency", "cost", "reliability")
LEAST_MS: Final = 1.0
LEAST_COST: Final = 1e-6
PRIOR_CALLS: Final = 10
"""How many calls the prior failure rate counts for."""
PRIOR_RATE: Final = 0.02
"""The prior failure rate of a version with fewer than PRIOR_ENOUGH calls in its life."""
PRIOR_ENOUGH: Final = 20
LARGEST_RATE: Final = 0.9
"""Above it 1 / (1 - f) would let one number outweigh all others."""


class Facts(Struct, frozen=True, gc=False):
    """What is known of one candidate. Durations in milliseconds; `usd` per call, None: not known.

    `failed` of `counted` calls in the last 60 minutes; `prior` is what `prior_rate` says. `until` is the deadline of
    an open circuit on the boot-time clock, 0.0 of a closed one.
    """

    name: str
    version: int
    expected_ms: float
    compute_seconds: float
    usd: float | None
    failed: int
    counted: int
    prior: float
    state: State
    until: float

    @property
    def identity(self) -> Identity:
        """Which candidate it is."""
        return self.name, self.version


class Ranked(Struct, frozen=True, gc=False):
    """A candidate that may be called. A lower `score` is better; `cost` is in the unit of the ranking."""

    facts: Facts
    score: float
    cost: float
    failure_rate: float
    is_probe: bool


class Excluded(Struct, frozen=True):
    """A candidate that is left out. `detail` says more for a person."""

    facts: Facts
    reason: Reason
    detail: str


class Ranking(Struct, frozen=True):
    """`ranked` best first; empty: nothing can be called. `degraded`: only candidates with open circuits were left."""

    ranked: tuple[Ranked, ...]
    excluded: tuple[Excluded, ...]
    unit: Unit
    degraded: bool


Order = Callable[[tuple[Ranked, ...], Unit], Iterable[Ranked]]
Filter = Callable[[Ranked, Unit], bool]


class Limits(Struct, frozen=True):
    """What the caller asks. None: no limit, no filter. `exclude` has full names of modules, and single versions."""

    deadline_ms: float | None = None
    max_cost_usd: float | None = None
    exclude: Collection[str | Identity] = ()
    accept: Filter | None = None


def prior_rate(failed: int, counted: int) -> float:
    """The failure rate of a version over its life, PRIOR_RATE where it has too few calls."""
    return failed / counted if counted >= PRIOR_ENOUGH else PRIOR_RATE


def failure_rate(failed: int, counted: int, prior: float) -> float:
    """f = (F + 10 f0) / (N + 10), at most LARGEST_RATE."""
    rate = (failed + PRIOR_CALLS * prior) / (counted + PRIOR_CALLS)
    return min(LARGEST_RATE, rate)


class Field:
    """Candidates in the order that decides ties. Their order by a preference is kept: limits do not change it."""

    __slots__ = ("_opened", "_ordered", "facts")

    def __init__(self, facts: Iterable[Facts]) -> None:
        self.facts = tuple(facts)
        self._opened = any(each.state == OPEN for each in self.facts)
        self._ordered: dict[tuple[str, Unit], tuple[Ranked, ...]] = {}

    @property
    def is_any_open(self) -> bool:
        """Whether the circuit of any candidate is open."""
        return self._opened

    def ordered(self, prefer: str | Order, unit: Unit) -> tuple[Ranked, ...]:
        """All of them, best first; for a function in the order that decides ties. Raises InvalidArgumentError."""
        key = (prefer if isinstance(prefer, str) else _BY_FUNCTION, unit)
        known = self._ordered.get(key)
        if known is None:
            scored = _scored(self.facts, prefer, unit)
            if isinstance(prefer, str):
                scored.sort(key=_reliability if prefer == "reliability" else _score)
            known = self._ordered[key] = tuple(scored)
        return known


_BY_FUNCTION: Final = ""


def rank(field: Field, prefer: str | Order, asked: Limits) -> Ranking:
    """The candidates in order, and those left out.

    Raises InvalidArgumentError for a preference that is unknown, or that returns what is no candidate.
    """
    excluded: list[Excluded] = []
    left = _within_limits(field.facts, asked, excluded)
    unit: Unit = USD
    for facts in left:
        if facts.usd is None:
            unit = COMPUTE_SECONDS
            break
    ordered = field.ordered(prefer, unit)
    if len(left) < len(ordered):
        within = set(map(id, left))  # the field's own objects
        ordered = tuple(each for each in ordered if id(each.facts) in within)
    if asked.accept is not None:
        ordered = _accepted(ordered, asked.accept, unit, excluded)
    if field.is_any_open:
        closed = tuple(each for each in ordered if each.facts.state != OPEN)
        if ordered and not closed:
            return _degraded(field, ordered, excluded, unit)
        excluded += [_unhealthy(each) for each in ordered if each.facts.state == OPEN]
        ordered = closed
    if not isinstance(prefer, str):
        ordered = _preferred(ordered, prefer, unit, excluded)
    return Ranking(ordered, tuple(excluded), unit, False)


def _degraded(field: Field, ended: Sequence[Ranked], excluded: list[Excluded], unit: Unit) -> Ranking:
    """Only candidates with open circuits are left: the one whose circuit ends first. Ties: the order of the field."""
    until = min(each.facts.until for each in ended)
    first = {each.facts.identity: each for each in ended if each.facts.until == until}
    last = next(first[facts.identity] for facts in field.facts if facts.identity in first)
    excluded += [_unhealthy(each) for each in ended if each is not last]
    return Ranking((last,), tuple(excluded), unit, True)


def _within_limits(candidates: Sequence[Facts], asked: Limits, excluded: list[Excluded]) -> Sequence[Facts]:
    if asked.deadline_ms is None and asked.max_cost_usd is None and not asked.exclude:
        return candidates
    left = []
    for facts in candidates:
        problem = _problem(facts, asked)
        if problem is None:
            left.append(facts)
        else:
            excluded.append(Excluded(facts, *problem))
    return left


def _problem(facts: Facts, asked: Limits) -> tuple[Reason, str] | None:
    if asked.exclude and (facts.name in asked.exclude or facts.identity in asked.exclude):
        return "exclude", "the caller excludes it"
    if asked.deadline_ms is not None and facts.expected_ms > asked.deadline_ms:
        return "deadline", f"it takes about {facts.expected_ms:.0f} ms, the deadline is {asked.deadline_ms:g} ms"
    if asked.max_cost_usd is None:
        return None
    if facts.usd is None:
        return "cost_unknown", f"its cost is not known, the budget is {asked.max_cost_usd:g} US dollars"
    if facts.usd > asked.max_cost_usd:
        return "cost", f"it costs about {facts.usd:.4g} US dollars, the budget is {asked.max_cost_usd:g}"
    return None


def _scored(left: Sequence[Facts], prefer: str | Order, unit: Unit) -> list[Ranked]:
    try:
        by_latency, by_cost = _WEIGHED[prefer if not callable(prefer) else "balanced"]
    except (KeyError, TypeError):
        raise InvalidArgumentError(
            f"prefer is {prefer!r}; it must be one of {', '.join(PREFERENCES)}, or a function of the candidates."
        ) from None
    is_usd = unit == USD
    scored = []
    for facts in left:
        rate = (facts.failed + PRIOR_CALLS * facts.prior) / (facts.counted + PRIOR_CALLS)
        if rate > LARGEST_RATE:
            rate = LARGEST_RATE
        cost = facts.usd if is_usd and facts.usd is not None else facts.compute_seconds
        weight = max(LEAST_COST, cost)
        duration = facts.expected_ms
        if duration < LEAST_MS:
            duration = LEAST_MS
        if by_latency:
            score = (sqrt(duration) * sqrt(weight) if by_cost else duration) / (1.0 - rate)
        else:
            score = weight / (1.0 - rate) if by_cost else rate
        scored.append(Ranked(facts, score, cost, rate, facts.state == HALF_OPEN))
    return scored


_WEIGHED: Final = {
    "balanced": (True, True),
    "latency": (True, False),
    "cost": (False, True),
    "reliability": (False, False),
}
"""Whether a preference looks at the duration, and whether at the cost."""


def _accepted(scored: Sequence[Ranked], accept: Filter, unit: Unit, excluded: list[Excluded]) -> tuple[Ranked, ...]:
    left = []
    for each in scored:
        if accept(each, unit):
            left.append(each)
        else:
            excluded.append(Excluded(each.facts, "filter", "the caller's filter does not accept it"))
    return tuple(left)


def _preferred(closed: tuple[Ranked, ...], order: Order, unit: Unit, excluded: list[Excluded]) -> tuple[Ranked, ...]:
    """By the caller's own order; probes last all the same."""
    known = {id(each): each for each in closed}
    chosen: dict[int, Ranked] = {}
    found: Any = order(closed, unit)
    for each in found if isinstance(found, Iterable) else (None,):
        if id(each) not in known:  # an object that was given, not one that equals it
            raise InvalidArgumentError("a function given as `prefer` must return candidates that it was given.")
        chosen[id(each)] = known[id(each)]
    excluded += [
        Excluded(each.facts, "preference", "the caller's order leaves it out")
        for each in closed
        if id(each) not in chosen
    ]
    return tuple(sorted(chosen.values(), key=lambda each: each.is_probe))


def _score(each: Ranked) -> tuple[bool, float]:
    return each.is_probe, each.score


def _reliability(each: Ranked) -> tuple[bool, float, float]:
    return each.is_probe, each.failure_rate, each.facts.expected_ms


def _unhealthy(each: Ranked) -> Excluded:
    return Excluded(each.facts, "health", "its circuit is open")
