"""What is advised for a version, from what was observed of it and what this process has just seen itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspy_registry.readers import observed, routing
from dspy_registry.readers.asked import Asked
from dspy_registry.readers.candidates import KnownModule
from dspy_registry.readers.observed import DECLARED
from dspy_registry.readers.route import Advice
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.advice import Standing, default_ceiling
from dspy_registry.registry_store.own_calls import NOTHING, Own
from dspy_registry.registry_store.own_place import OwnPlace
from dspy_registry.registry_store.usage import LARGEST_OF
from dspy_registry.registry_store.usage_rows import InForce

NOTHING_SEEN: Final = Standing()


class Advising:
    """What the advice of a reader rests on beside the registry, and how it is made."""

    __slots__ = ()

    _weights: Mapping[str, float]
    _min_observed_calls: int
    _own: OwnPlace

    def _seen(self, found: InForce, size: str) -> Own:
        """What this process saw itself of a version."""
        return self._own.seen(found.names, found.usage.version, size, in_force=found.is_in_force)

    def _observed(
        self, found: InForce, declared: Recommendation, size: str, basis: str, longest: float | None, own: Own
    ) -> Recommendation:
        """The recommendation on a basis other than `declared`. `longest` is the policy's longest timeout in seconds."""
        standing = found.usage.standing.get(size, NOTHING_SEEN).with_own(own.longest, own.backoff)
        ceiling = default_ceiling(declared.timeout) if longest is None else longest * 1000
        enough = self._min_observed_calls
        return observed.recommendation(declared, found.info, standing, basis, size, ceiling, enough, self._weights)

    def _advise(self, known: KnownModule, asked: Asked, last: Advice | None) -> Advice:
        """The advice for a candidate of a route, from what was read for the decision. `last` is of the same one."""
        changes = 0 if asked.basis == DECLARED else self._own.changes()
        if last is not None and last.changes == changes:
            return last
        found, size = known.found, asked.size
        own = NOTHING if asked.basis == DECLARED else self._seen(found, size)
        if last is not None and last.own == own:
            return Advice(changes, own, last.recommendation)
        declared = routing.recommend(found.info, LARGEST_OF[size], False, self._weights, known.life_usd)
        if asked.basis == DECLARED:
            return Advice(changes, own, declared)
        return Advice(changes, own, self._observed(found, declared, size, asked.basis, known.max_timeout, own))
