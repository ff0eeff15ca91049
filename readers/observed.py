"""What real calls have shown, used in place of what was declared. Pure. `docs/statistics.md` says why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from dspy_registry.readers import routing
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.advice import Standing, auto_timeout, estimate, observed_timeout
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.records import ModuleInfo

DECLARED: Final = "declared"
AUTO: Final = "auto"
BASES: Final = (DECLARED, "observed", AUTO)
"""What a duration may be based on.

declared  what the module's record says
observed  what calls of the version in force with an input of that size took; what is declared counts until enough of
          them completed
auto      as observed, but no limit is below the declared one, nor below 1.2 times the estimate
"""
DEFAULT_MIN_OBSERVED_CALLS: Final = 20


def check_basis(basis: str) -> None:
    """Raises InvalidArgumentError for a basis that is not one of BASES."""
    if basis not in BASES:
        raise InvalidArgumentError(f"basis {basis!r} is not one of {', '.join(BASES)}.")


def estimated_ms(standing: Standing, declared: float, enough: int) -> int:
    """How long a call will take, in milliseconds; a half is rounded up. One completed call is the least that counts."""
    return int(estimate(standing, declared, max(1, enough)) + 0.5)


def recommendation(
    declared: Recommendation,
    info: ModuleInfo,
    standing: Standing,
    basis: str,
    input_size: str,
    ceiling: float,
    enough: int,
    weights: Mapping[str, float],
) -> Recommendation:
    """The recommendation with its limit and its cost from what was observed. No limit is above `ceiling`, in ms.

    A limit is rounded up: rounded down, it could end calls that the statistics let pass.
    """
    enough = max(1, enough)
    if basis == AUTO:
        duration = float(routing.scaled_duration(info.estimated_duration, input_size))
        limit = auto_timeout(standing, declared.timeout, duration, ceiling, enough)
    else:
        limit = observed_timeout(standing, declared.timeout, ceiling, enough)
    cost = declared.estimated_cost
    if standing.completed >= enough:
        cost = routing.compute_weight(info, weights) * standing.p50 / 1000
    return Recommendation(
        declared.pool_type,
        max(1, math.ceil(limit)),
        declared.prefer_native,
        cost,
        declared.declared_cost_usd,
        declared.observed_cost_usd,
    )
