"""Routing in plain Python, after docs/routing.md: from records and calls to names, reasons and numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

FACTORS = {"small": 0.5, "normal": 1.0, "large": 2.0, "very_large": 5.0}
WEIGHTS = {"low": 1.0, "medium": 2.0, "high": 4.0, "very_high": 8.0}


@dataclass
class Module:
    """A module, and the calls of its only version, each (milliseconds, kind, size class, dollars)."""

    name: str
    capabilities: tuple[str, ...]
    duration: int
    compute: str
    gpu: bool
    declared_usd: float | None
    calls: list[tuple[float, str, str, float | None]] = field(default_factory=list)


@dataclass
class Answer:
    """`order` names best first; `reasons` by name; `numbers`: expected milliseconds, cost, failure rate by name."""

    order: list[str]
    reasons: dict[str, str]
    unit: str
    degraded: bool
    numbers: dict[str, tuple[float, float, float]]


def route(
    modules: Sequence[Module],
    observed_ms: Callable[[str, str], float | None],
    open_until: Mapping[str, float],
    half_open: Collection[str],
    *,
    capability: str | None,
    names: Sequence[str] | None,
    size: str,
    basis: str,
    prefer: str,
    deadline_ms: float | None,
    max_cost_usd: float | None,
    exclude: Collection[str],
    accepts: Callable[[str], bool] | None,
) -> Answer:
    """The decision. `observed_ms` is the median of enough calls of that size; None: there are too few."""
    by_name = {module.name: module for module in modules}
    found = [module for module in modules if capability is None or capability in module.capabilities]
    if names is not None:
        meeting = {module.name for module in found}
        found = [by_name[name] for name in dict.fromkeys(names) if name in meeting]
    facts = {module.name: _facts(module, size, basis, observed_ms) for module in found}
    reasons: dict[str, str] = {}
    for name, (expected, _, dollars, _) in facts.items():
        if name in exclude:
            reasons[name] = "exclude"
        elif deadline_ms is not None and expected > deadline_ms:
            reasons[name] = "deadline"
        elif max_cost_usd is not None and dollars is None:
            reasons[name] = "cost_unknown"
        elif max_cost_usd is not None and dollars is not None and dollars > max_cost_usd:
            reasons[name] = "cost"
    left = [name for name in facts if name not in reasons]
    unit = "usd" if all(facts[name][2] is not None for name in left) else "compute_seconds"
    numbers = {name: (facts[name][0], _cost(facts[name], unit), facts[name][3]) for name in left}
    for name in left:
        if accepts is not None and not accepts(name):
            reasons[name] = "filter"
    left = [name for name in left if name not in reasons]
    closed = [name for name in left if name not in open_until]
    if left and not closed:
        first = min(left, key=lambda name: open_until[name])
        reasons.update({name: "health" for name in left if name != first})
        return Answer([first], reasons, unit, True, numbers)
    reasons.update({name: "health" for name in left if name in open_until})
    order = sorted(closed, key=lambda name: (name in half_open, *_score(prefer, *numbers[name])))
    return Answer(order, reasons, unit, False, numbers)


def _facts(module: Module, size: str, basis: str, observed_ms: Any) -> tuple[float, float, float | None, float]:
    declared = int(module.duration * FACTORS[size] + 0.5)
    seen = observed_ms(module.name, size) if basis != "declared" else None
    expected = declared if seen is None else int(seen + 0.5)
    seconds = WEIGHTS[module.compute] * (4.0 if module.gpu else 1.0) * expected / 1000
    priced = [dollars for *_, dollars in module.calls if dollars is not None]
    dollars = sum(priced) / len(priced) if priced else module.declared_usd
    judged = [kind for _, kind, _, _ in module.calls if kind not in ("caller", "cancelled")]
    failed = sum(kind != "ok" for kind in judged)
    prior = failed / len(judged) if len(judged) >= 20 else 0.02
    return expected, seconds, dollars, min(0.9, (failed + 10 * prior) / (len(judged) + 10))


def _cost(facts: tuple[float, float, float | None, float], unit: str) -> float:
    return facts[2] if unit == "usd" and facts[2] is not None else facts[1]


def _score(prefer: str, expected: float, cost: float, rate: float) -> tuple[float, ...]:
    duration, weight = max(1.0, expected), max(1e-6, cost)
    return {
        "latency": (duration / (1 - rate),),
        "cost": (weight / (1 - rate),),
        "balanced": (sqrt(duration) * sqrt(weight) / (1 - rate),),
        "reliability": (rate, expected),
    }[prefer]
