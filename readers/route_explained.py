"""A decision in words: each candidate's numbers, where each comes from, the formula filled in, every exclusion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dspy_registry.readers.asked import Asked
from dspy_registry.readers.candidates import Candidates, KnownModule, Moment, is_observed, life_of
from dspy_registry.readers.ranking import (
    COMPUTE_SECONDS,
    LARGEST_RATE,
    LEAST_COST,
    LEAST_MS,
    PRIOR_CALLS,
    PRIOR_ENOUGH,
    USD,
    Ranked,
    Ranking,
)

_FORMULAS: Final = {
    "balanced": "√d × √c / (1 - f)",
    "latency": "d / (1 - f)",
    "cost": "c / (1 - f)",
    "reliability": "f, then d",
}
UNITS: Final = {USD: "US dollars", COMPUTE_SECONDS: "compute-seconds"}
"""What a person reads for each unit of cost."""


def explained(ranking: Ranking, candidates: Candidates, asked: Asked, moment: Moment) -> str:
    """Several lines, without a line break at the end."""
    return "\n".join(_lines(ranking, candidates, asked, moment))


def _lines(ranking: Ranking, candidates: Candidates, asked: Asked, moment: Moment) -> Iterator[str]:
    best = ranking.ranked[0].facts
    yield f"{best.name}, version {best.version}" + (" (degraded: every circuit is open)" if ranking.degraded else "")
    yield (
        f"rests on revision {moment.revision}, usage word {moment.usage_word}, health word {moment.health_word}; "
        f"basis {asked.basis}, {asked.size} input"
    )
    prefer = asked.prefer if isinstance(asked.prefer, str) else ""
    formula = _FORMULAS.get(prefer, "a function of the caller; score: " + _FORMULAS["balanced"])
    yield f"ordered by {prefer or 'prefer'}: {formula}; lower is better; c in {UNITS[ranking.unit]}"
    for place, ranked in enumerate(ranking.ranked, 1):
        yield from _candidate(place, ranked, ranking, candidates.known[ranked.facts.identity], asked, moment)
    for each in ranking.excluded:
        yield f"-  {each.facts.name}, version {each.facts.version}: excluded ({each.reason}): {each.detail}"


def _candidate(
    place: int, ranked: Ranked, ranking: Ranking, known: KnownModule, asked: Asked, moment: Moment
) -> Iterator[str]:
    facts = ranked.facts
    probe = "; its circuit is half-open, so it comes last and is a probe" if ranked.is_probe else ""
    yield f"{place}. {facts.name}, version {facts.version}: {_filled_in(ranked, asked)}{probe}"
    observed = is_observed(known.found.usage, asked.size, asked.basis, moment.enough)
    origin = f"observed of version {facts.version}" if observed else "declared"
    yield f"     d = {facts.expected_ms:g} ms, {origin}"
    where = known.usd[1] if ranking.unit == USD else f"compute weight × {facts.expected_ms / 1000:g} s, {origin}"
    yield f"     c = {ranked.cost:.4g} {UNITS[ranking.unit]}, {where}"
    failed, counted = life_of(known.found.usage)
    prior = (
        f"{failed} of {counted} calls of version {facts.version} over its life"
        if counted >= PRIOR_ENOUGH
        else f"the default below {PRIOR_ENOUGH} calls"
    )
    yield (
        f"     f = ({facts.failed} + {PRIOR_CALLS} × {facts.prior:.4g}) / ({facts.counted} + {PRIOR_CALLS}) = "
        f"{ranked.failure_rate:.4g}; {facts.failed} of {facts.counted} calls failed in the last hour; "
        f"f₀ = {facts.prior:.4g}, {prior}"
        + (f"; at most {LARGEST_RATE}" if ranked.failure_rate == LARGEST_RATE else "")
    )


def _filled_in(ranked: Ranked, asked: Asked) -> str:
    d, c, f = max(LEAST_MS, ranked.facts.expected_ms), max(LEAST_COST, ranked.cost), ranked.failure_rate
    if asked.prefer == "reliability":
        return f"{f:.4g}, then {d:g}"
    formula = {
        "latency": f"{d:g} / (1 - {f:.4g})",
        "cost": f"{c:.4g} / (1 - {f:.4g})",
    }.get(asked.prefer if isinstance(asked.prefer, str) else "", f"√{d:g} × √{c:.4g} / (1 - {f:.4g})")
    return f"{formula} = {ranked.score:.4g}"
