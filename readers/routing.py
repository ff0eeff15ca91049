"""Durations, timeouts and costs: pure functions of a module and of the input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.usage import LARGE_INPUT, VERY_LARGE_INPUT

INPUT_SIZES: Final[Mapping[str, float]] = {
    "small": 0.5,
    "normal": 1.0,
    "large": 2.0,
    "very_large": 5.0,
}
"""What the typical duration is multiplied by, for each word for the input's size."""

TIMEOUT_MARGIN: Final = 1.2
COST_METADATA: Final = "cost_usd_per_call"


class CostWeights(msgspec.Struct, frozen=True, kw_only=True):
    """What one second on each level of compute costs, in compute-seconds. `gpu` multiplies it if a GPU is needed.

    A compute-second is one second of the cheapest level. Only the ratios between the weights matter, so the weights
    may also be prices.
    """

    low: float = 1.0
    medium: float = 2.0
    high: float = 4.0
    very_high: float = 8.0
    gpu: float = 4.0


class Recommendation(msgspec.Struct, frozen=True, gc=False):
    """How to route one call. A copy: later changes of the registry do not change it.

    `pool_type` is the pool that should run it, `timeout` its time limit in milliseconds. `prefer_native` is True only
    if the caller asked for low latency and the module has a native implementation. `estimated_cost` is in
    compute-seconds: compute weight x gpu weight x expected seconds for this input. The last two are US dollars per
    call: `declared_cost_usd` is `cost_usd_per_call` of the module's metadata (None: not declared), `observed_cost_usd`
    the mean of the calls that reported their cost (None: no call did).
    """

    pool_type: str
    timeout: int
    prefer_native: bool
    estimated_cost: float
    declared_cost_usd: float | None = None
    observed_cost_usd: float | None = None

    @property
    def timeout_seconds(self) -> float:
        """The time limit in seconds, as `asyncio.timeout` and most clients take it."""
        return self.timeout / 1000


def scaled_duration(base: int, input_size: str) -> int:
    """Milliseconds for an input size; a half is rounded up. Raises InvalidArgumentError, which lists the sizes."""
    try:
        factor = INPUT_SIZES[input_size]
    except (KeyError, TypeError):
        allowed = ", ".join(INPUT_SIZES)
        raise InvalidArgumentError(f"input_size {input_size!r} is not one of {allowed}.") from None
    return int(base * factor + 0.5)


def size_factor(input_size: int | None) -> float:
    """What the timeout is multiplied by for an input of this many characters. None: unknown, which counts as small."""
    if input_size is None or input_size <= LARGE_INPUT:
        return 1.0
    return 3.0 if input_size > VERY_LARGE_INPUT else 1.5


def timeout_ms(base: float, factor: float) -> int:
    """The timeout for a duration of `base` milliseconds: round(base x factor x 1.2)."""
    return round(base * factor * TIMEOUT_MARGIN)


def recommend(
    info: ModuleInfo,
    input_size: int | None,
    optimize_latency: bool,
    weights: Mapping[str, float],
    observed_cost_usd: float | None,
) -> Recommendation:
    """A recommendation from what the module declares. `weights` are those of CostWeights, by name."""
    base = info.estimated_duration
    factor = 1.0
    if input_size is not None:
        try:
            if input_size > LARGE_INPUT:
                factor = size_factor(input_size)
            elif not input_size >= 0:  # negative, or not a number
                raise _wrong_size(input_size)
        except TypeError:
            raise _wrong_size(input_size) from None
    needs = info.requirements
    weight = weights[needs.compute]
    if needs.gpu:
        weight *= weights["gpu"]
    return Recommendation(
        info.pool_type,
        round(base * factor * TIMEOUT_MARGIN),
        True if info.native_available and optimize_latency else False,  # noqa: SIM210  # bool() would be a call
        weight * base * factor / 1000,
        declared_cost(info.metadata) if COST_METADATA in info.metadata else None,
        observed_cost_usd,
    )


def _wrong_size(input_size: object) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"input_size is {input_size!r}; here it is the input's length in characters, 0 or more, or None if not known.",
        remedy="Words such as 'large' are for estimate_duration.",
    )


def compute_weight(info: ModuleInfo, weights: Mapping[str, float]) -> float:
    """Compute-seconds that one second of this module costs."""
    needs = info.requirements
    return weights[needs.compute] * (weights["gpu"] if needs.gpu else 1.0)


def declared_cost(metadata: Mapping[str, Any]) -> float | None:
    """US dollars per call that a module declares. None: it declares no cost."""
    cost = metadata.get(COST_METADATA)
    return float(cost) if isinstance(cost, (int, float)) and not isinstance(cost, bool) else None
