"""`Snapshot.route`: records and usage of the snapshot, health of now."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, Concatenate, ParamSpec, TypeVar

from dspy_registry.readers.asked import Accept, Preference, asked_for
from dspy_registry.readers.decisions import Decisions, Sources, begun
from dspy_registry.readers.near_words import tell_near_capabilities
from dspy_registry.readers.observed import AUTO
from dspy_registry.readers.queries import Queries
from dspy_registry.readers.route import Route
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.errors import NoCandidateError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.revision import committed

T = TypeVar("T")
P = ParamSpec("P")


class DecidingSnapshot(Queries):
    """What `Snapshot` keeps for its decisions. What it has read never becomes untrue."""

    __slots__ = ("_decisions", "_usage_word")

    revision: int
    _decisions: Decisions
    _usage_word: float

    @abstractmethod
    def _in_transaction(
        self, read: Callable[Concatenate[Transaction, Databases, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `read` returns, called with the snapshot's transaction."""

    def route(
        self,
        capabilities: str | Iterable[str] | None = (),
        category: str | None = None,
        pool_type: str | None = None,
        native: bool | None = None,
        gpu: bool | None = None,
        max_memory: str | None = None,
        max_compute: str | None = None,
        any_capabilities: str | Iterable[str] | None = None,
        without_capabilities: str | Iterable[str] | None = None,
        names: str | Iterable[str] | None = None,
        input_size: int | None = None,
        prefer: Preference = "balanced",
        deadline_ms: float | None = None,
        max_cost_usd: float | None = None,
        exclude: str | Iterable[str] = (),
        accept: Accept | None = None,
        basis: str = AUTO,
        label: str | None = None,
        key: str | None = None,
    ) -> Route:
        given = (capabilities, category, pool_type, native, gpu, max_memory, max_compute)
        conditions: tuple[Any, ...] = (*given, any_capabilities, without_capabilities)
        if label is not None or key is not None:
            names = self._versions_of(conditions, names, label, key)
        asked = asked_for(conditions, names, input_size, prefer, deadline_ms, max_cost_usd, exclude, accept, basis)
        while True:
            decisions = self._decisions_now()
            self._in_transaction(decisions.load, asked)
            try:
                route = decisions.decide(asked)
            except NoCandidateError as error:
                if not error.excluded:
                    self._in_transaction(tell_near_capabilities, error, asked)
                raise
            if route is not None:
                return route

    def _decisions_now(self) -> Decisions:
        health, decisions = self._own.health.current(), self._decisions
        if health is not decisions.health or boot_seconds() >= decisions.ends:
            sources = Sources(self._weights, self._min_observed_calls, self._advise)
            words = (committed(self.revision), 0.0, self._usage_word, 0.0)  # nobody compares a snapshot's
            decisions = self._decisions = begun(words, self.revision, health, sources, decisions)
        return decisions
