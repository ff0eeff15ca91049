"""What `route` returns: the modules that may be called, best first, and why the others may not."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from dspy_registry.readers.asked import Accept, Asked
from dspy_registry.readers.candidates import Candidates, KnownModule, Moment
from dspy_registry.readers.ranking import Filter, Identity, Limits, Order, Ranked, Ranking, Reason, Unit, rank
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.errors import NoCandidateError
from dspy_registry.registry_store.own_calls import Own


class Advice(msgspec.Struct, frozen=True, gc=False):
    """A recommendation for one candidate, and what this process had seen itself when it was made.

    `changes` is what `OwnPlace.changes` said then; 0: the basis is what is declared.
    """

    changes: int
    own: Own
    recommendation: Recommendation


Advise = Callable[[KnownModule, Asked, "Advice | None"], Advice]
"""The advice for one candidate, from what was read for the decision. The last one, if it still holds."""


class Exclusion(NamedTuple):
    """A candidate that is left out. `reason` is one word: docs/routing.md lists them. `detail` is for a person."""

    name: str
    version: int
    reason: Reason
    detail: str


class Candidate:
    """A module that may be called. A copy: later changes of the registry do not change it.

    A lower `score` is better. `expected_ms` is in milliseconds. `cost` is per call, in `cost_unit`: "usd" if every
    candidate has a cost in US dollars, else "compute_seconds". `failure_rate` is from 0 to 0.9. `is_probe`: its circuit
    is half-open, so call it only with `Registry.probe`. `asked` is the name by which it was asked for: the name in
    `names`, or the full name; with a label or a key `name@version`.
    """

    __slots__ = (
        "_advice",
        "_advise",
        "_asked",
        "_known",
        "_ranked",
        "asked",
        "cost_unit",
        "is_probe",
        "name",
        "version",
    )

    def __init__(self, ranked: Ranked, unit: Unit, known: KnownModule, asked: Asked, advise: Advise) -> None:
        self.name = ranked.facts.name
        self.version = ranked.facts.version
        self.cost_unit: Unit = unit
        self.is_probe = ranked.is_probe
        self.asked = known.asked
        self._ranked = ranked
        self._known = known
        self._asked = asked
        self._advise = advise
        self._advice: Advice | None = None

    def __repr__(self) -> str:
        probe = ", is_probe=True" if self.is_probe else ""
        return f"Candidate({self.name!r}, version={self.version}, score={self.score:.4g}{probe})"

    @property
    def score(self) -> float:
        """What the candidates are ordered by. Lower is better."""
        return self._ranked.score

    @property
    def expected_ms(self) -> float:
        """What `estimate_duration` says, in milliseconds."""
        return self._ranked.facts.expected_ms

    @property
    def cost(self) -> float:
        """Of one call, in `cost_unit`."""
        return self._ranked.cost

    @property
    def failure_rate(self) -> float:
        """The share of calls that is expected to fail."""
        return self._ranked.failure_rate

    @property
    def recommendation(self) -> Recommendation:
        """Pool, timeout and cost, made when it is asked for.

        It rests on what was read for the decision, and on the calls that this process has just made itself.
        """
        advice = self._advice = self._advise(self._known, self._asked, self._advice)
        return advice.recommendation


class Route:
    """A decision: `name` and `version` of the module to call, and the `alternatives`, best first, it included.

    `degraded`: every circuit is open, so this is the module whose circuit ends first. `excluded` are those left out.
    `revision`, `usage_word` and `health_word` say what the decision rests on. It may be shared with other callers.
    """

    __slots__ = ("_advise", "_alternatives", "_asked", "_candidates", "_moment", "_ranking", "name", "version")

    def __init__(self, ranking: Ranking, candidates: Candidates, asked: Asked, moment: Moment, advise: Advise) -> None:
        best = ranking.ranked[0].facts
        self.name = best.name
        self.version = best.version
        self._ranking = ranking
        self._candidates = candidates
        self._asked = asked
        self._moment = moment
        self._advise = advise
        self._alternatives: tuple[Candidate, ...] | None = None

    def __repr__(self) -> str:
        degraded = ", degraded=True" if self.degraded else ""
        others = len(self._ranking.ranked) - 1
        return f"Route({self.name!r}, version={self.version}, {others} others{degraded}, revision={self.revision})"

    @property
    def alternatives(self) -> tuple[Candidate, ...]:
        """The modules that may be called, best first; the first is the one chosen."""
        if self._alternatives is None:
            unit, known = self._ranking.unit, self._candidates.known
            self._alternatives = tuple(
                Candidate(ranked, unit, known[ranked.facts.identity], self._asked, self._advise)
                for ranked in self._ranking.ranked
            )
        return self._alternatives

    @property
    def excluded(self) -> tuple[Exclusion, ...]:
        """The candidates that are left out, each with the first reason that holds."""
        return exclusions(self._ranking)

    @property
    def recommendation(self) -> Recommendation:
        """Pool, timeout and cost of the module to call, as `Candidate.recommendation`."""
        return self.alternatives[0].recommendation

    @property
    def degraded(self) -> bool:
        """Whether the circuits of all candidates are open."""
        return self._ranking.degraded

    @property
    def revision(self) -> int:
        """The revision whose records the decision rests on."""
        return self._moment.revision

    @property
    def usage_word(self) -> int:
        """Which merge of usage statistics the decision rests on; it rises with each."""
        return self._moment.usage_word

    @property
    def health_word(self) -> int:
        """Which list of unhealthy modules the decision rests on; it rises with each. 0: there was none."""
        return self._moment.health_word

    def explain(self) -> str:
        """For a person: each candidate's numbers, where they come from, the formula, every exclusion."""
        from dspy_registry.readers.route_explained import explained  # few ask for it

        return explained(self._ranking, self._candidates, self._asked, self._moment)


def exclusions(ranking: Ranking) -> tuple[Exclusion, ...]:
    """The candidates that a ranking leaves out."""
    return tuple(Exclusion(each.facts.name, each.facts.version, each.reason, each.detail) for each in ranking.excluded)


def decide(
    candidates: Candidates, asked: Asked, exclude: tuple[str | Identity, ...], moment: Moment, advise: Advise
) -> Route:
    """The decision. `exclude` has full names, and versions.

    Raises NoCandidateError, and what the caller's functions raise.
    """
    prefer, accept = asked.prefer, asked.accept
    limits = Limits(
        asked.deadline_ms,
        asked.max_cost_usd,
        exclude,
        None if accept is None else _shown_to_filter(accept, candidates, asked, advise),
    )
    order = prefer if isinstance(prefer, str) else _shown_to_order(prefer, candidates, asked, advise)
    ranking = rank(candidates.field, order, limits)
    if not ranking.ranked:
        raise NoCandidateError(exclusions(ranking))
    return Route(ranking, candidates, asked, moment, advise)


def _shown_to_filter(accept: Accept, candidates: Candidates, asked: Asked, advise: Advise) -> Filter:
    """The caller's filter as `rank` takes it."""
    return lambda ranked, unit: bool(
        accept(Candidate(ranked, unit, candidates.known[ranked.facts.identity], asked, advise))
    )


def _shown_to_order(prefer: Any, candidates: Candidates, asked: Asked, advise: Advise) -> Order:
    """The caller's order as `rank` takes it: of candidates, and again of what they show."""

    def order(ranked: tuple[Ranked, ...], unit: Unit) -> Iterable[Any]:
        known = candidates.known
        found = prefer(tuple(Candidate(each, unit, known[each.facts.identity], asked, advise) for each in ranked))
        if not isinstance(found, Iterable):
            return (None,)
        return (each._ranked if isinstance(each, Candidate) else each for each in found)

    return order
