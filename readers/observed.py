"""What real calls have shown, as a reader uses it: in place of what was declared, where there are enough of them.

Statistics change every second, so they are cached apart from the modules: valid as long as the usage word stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import msgspec

from dspy_registry.readers import routing
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.revision import RETIRED
from dspy_registry.registry_store.usage import Durations, ModuleUsage, size_class

if TYPE_CHECKING:
    from dspy_registry.readers.queries import Queries

DECLARED: Final = "declared"
BASES: Final = (DECLARED, "observed", "auto")
"""What a duration may be based on.

declared  what the module's record says
observed  what calls with an input of that size took, once there are enough of them; else declared
auto      as observed, but declared while the record is newer than the last call: what was measured was another one
"""
DEFAULT_MIN_OBSERVED_CALLS: Final = 20

_ROWS_KEPT: Final = 4096


class UsageCache:
    """Usage by full name, as of one usage word. Replaced, not changed, when the word has moved on."""

    __slots__ = ("costs", "rows", "word")

    def __init__(self, word: float = RETIRED) -> None:
        self.word = word
        self.rows: dict[str, ModuleUsage] = {}
        self.costs: dict[str, float | None] = {}

    def put(self, name: str, usage: ModuleUsage) -> None:
        """Keep what was read in a transaction that began after the word was."""
        self.rows[name] = usage
        self.costs[name] = usage.cost_usd_per_call

    @property
    def is_full(self) -> bool:
        """Whether nothing more should be put into it."""
        return len(self.rows) >= _ROWS_KEPT


def observed_duration(queries: Queries, name: str, input_size: str, basis: str) -> int:
    """`estimate_duration` on a basis other than what is declared: the median of the size's calls."""
    info = queries.get_module(name)
    declared = routing.scaled_duration(info.estimated_duration, input_size)
    seen = _seen(queries, info, input_size, basis)
    return declared if seen is None else int(seen.p50 + 0.5)


def observed_recommendation(
    queries: Queries, name: str, input_size: int | None, optimize_latency: bool, basis: str
) -> Recommendation:
    """`routing_recommendation` on a basis other than what is declared: the timeout from the size's 99th percentile."""
    info = queries.get_module(name)
    weights: Mapping[str, float] = queries._weights
    cost = queries._usage_of(info.name).cost_usd_per_call
    declared = routing.recommend(info, input_size, optimize_latency, weights, cost)
    seen = _seen(queries, info, size_class(input_size), basis)
    if seen is None:
        return declared
    return msgspec.structs.replace(
        declared,
        timeout=routing.timeout_ms(seen.p99, 1.0),
        estimated_cost=routing.compute_weight(info, weights) * seen.p50 / 1000,
    )


def _seen(queries: Queries, info: ModuleInfo, input_size: str, basis: str) -> Durations | None:
    """What the basis takes in place of what is declared; None when declared counts."""
    if basis not in BASES:
        raise InvalidArgumentError(f"basis {basis!r} is not one of {', '.join(BASES)}.")
    if basis == DECLARED:
        return None
    usage = queries._usage_of(info.name)
    seen = usage.durations.get(input_size)
    if seen is None or seen.calls < queries._min_observed_calls:
        return None
    if basis == "auto" and queries.describe(info.name).provenance.updated_at > usage.last_used:
        return None
    return seen
