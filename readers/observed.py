"""Replaces declared durations by observed ones, once there are enough calls. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from dspy_registry.readers import routing
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.usage import Durations, ModuleUsage

DECLARED: Final = "declared"
AUTO: Final = "auto"
BASES: Final = (DECLARED, "observed", AUTO)
"""What a duration may be based on.

declared  what the module's record says
observed  what calls with an input of that size took, once there are enough of them; until then, declared
auto      as observed, but declared while the record is newer than the last call, which ran another version
"""
DEFAULT_MIN_OBSERVED_CALLS: Final = 20


def check_basis(basis: str) -> None:
    """Raises InvalidArgumentError for a basis that is not one of BASES."""
    if basis not in BASES:
        raise InvalidArgumentError(f"basis {basis!r} is not one of {', '.join(BASES)}.")


def observed_durations(usage: ModuleUsage, input_size: str, min_calls: int) -> Durations | None:
    """How long calls with an input of this size took. None: there were none, or fewer than `min_calls`."""
    seen = usage.durations.get(input_size)
    return None if seen is None or seen.calls < min_calls else seen


def observed_duration(seen: Durations) -> int:
    """The median in milliseconds; a half is rounded up."""
    return int(seen.p50 + 0.5)


def observed_recommendation(
    declared: Recommendation, info: ModuleInfo, seen: Durations, weights: Mapping[str, float]
) -> Recommendation:
    """The recommendation with its timeout from the 99th percentile and its cost from the median."""
    return msgspec.structs.replace(
        declared,
        timeout=routing.timeout_ms(seen.p99, 1.0),
        estimated_cost=routing.compute_weight(info, weights) * seen.p50 / 1000,
    )
