"""Decisions and advice that a registry keeps, and the reads behind those that it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from dspy_registry.readers.advice_kept import NOTHING_ADVISED, AdviceKept
from dspy_registry.readers.asked import Accept, Asked, Preference, asked_for
from dspy_registry.readers.decisions import NOTHING_DECIDED, Decisions, Sources, Words, begun
from dspy_registry.readers.host import HostReads
from dspy_registry.readers.observed import AUTO, DECLARED
from dspy_registry.readers.route import Route
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.arguments import plain_name
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.errors import NoCandidateError
from dspy_registry.registry_store.host_health import HostHealth, Known
from dspy_registry.registry_store.revision import is_retired
from dspy_registry.registry_store.usage import LARGE_INPUT, SMALL_INPUT, VERY_LARGE_INPUT

_awake_seconds = time.monotonic
_clock = time.clock_gettime
_BOOT_TIME: Final = time.CLOCK_BOOTTIME
_NONE_EXCLUDED: Final = ()
_PLAIN: Final = frozenset((type(None), str, int, float, bool))
_SEVERAL: Final = frozenset((tuple, frozenset))


def _is_plain(argument: Any) -> bool:
    """Whether it always says the same, and equals only what says the same."""
    kind = type(argument)
    return kind in _PLAIN or (kind in _SEVERAL and all(type(word) is str for word in argument))


class Deciding(HostReads):
    """What `Registry` keeps of its decisions."""

    __slots__ = ("_advice", "_decisions", "_health")

    _advice: AdviceKept
    _decisions: Decisions
    _health: HostHealth

    def _open(self) -> None:
        self._advice = NOTHING_ADVISED
        self._decisions = NOTHING_DECIDED
        self._health = self._own.health
        super()._open()

    def close(self) -> None:
        super().close()
        self._advice = NOTHING_ADVISED
        self._decisions = NOTHING_DECIDED

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
        # Give these by name. They are not keyword-only, because filling those in takes as long as a tenth of all.
        names: str | Iterable[str] | None = None,
        input_size: int | None = None,
        prefer: Preference = "balanced",
        deadline_ms: float | None = None,
        max_cost_usd: float | None = None,
        exclude: str | Iterable[str] = _NONE_EXCLUDED,
        accept: Accept | None = None,
        basis: str = AUTO,
        label: str | None = None,
        key: str | None = None,
    ) -> Route:
        if label is not None or key is not None:
            conditions = (capabilities, category, pool_type, native, gpu, max_memory, max_compute)
            every = (*conditions, any_capabilities, without_capabilities)
            limits = {"input_size": input_size, "deadline_ms": deadline_ms, "max_cost_usd": max_cost_usd}
            choices = {**limits, "prefer": prefer, "exclude": exclude, "accept": accept, "basis": basis}
            return self._route_versions(every, names, label, key, choices)
        arguments: Any = None
        kept = self._decisions
        try:
            # A route depends on the size class of the input only, so it is kept by the largest input of that class.
            if input_size is None:
                size = LARGE_INPUT
            elif input_size > LARGE_INPUT:
                size = VERY_LARGE_INPUT if input_size <= VERY_LARGE_INPUT else VERY_LARGE_INPUT + 1
            elif input_size > SMALL_INPUT:
                size = LARGE_INPUT
            else:
                size = SMALL_INPUT if input_size >= 0 else input_size  # a negative one is refused, so never kept
            # Hashing the key takes long, so the usual arguments have a short one.
            arguments = (capabilities, names, size, prefer, deadline_ms, basis)
            if max_cost_usd is not None or accept is not None or exclude is not _NONE_EXCLUDED:
                arguments = (*arguments, max_cost_usd, exclude, accept)
            # Not as one chain of `is`: each link of one takes five instructions, a comparison with None two.
            if (
                category is not None
                or pool_type is not None
                or native is not None
                or gpu is not None
                or max_memory is not None
                or max_compute is not None
                or any_capabilities is not None
                or without_capabilities is not None
            ):
                of_words = (any_capabilities, without_capabilities)
                arguments = (*arguments, category, pool_type, native, gpu, max_memory, max_compute, *of_words)
            if (
                self._every_word == kept.words  # that is the health published, too
                and self._health.known is kept.health
                and (_awake_seconds() < kept.awake_ends or _clock(_BOOT_TIME) < kept.ends)
            ):
                return kept.routes[arguments]
        except (KeyError, TypeError):  # TypeError: a list, which cannot be a key, or a size that is no number
            pass
        others = (category, pool_type, native, gpu, max_memory, max_compute, any_capabilities, without_capabilities)
        asked = asked_for(
            (capabilities, *others), names, input_size, prefer, deadline_ms, max_cost_usd, exclude, accept, basis
        )
        is_kept = accept is None and type(prefer) is str and all(map(_is_plain, arguments))
        return self._decide(asked, arguments if is_kept else None)

    def _route_versions(
        self, conditions: tuple[Any, ...], names: Any, label: str | None, key: str | None, choices: dict[str, Any]
    ) -> Route:
        """The route among versions that a label or a key chooses. It is kept by these versions, never by the key."""
        decide: Callable[..., Route] = self.route
        while True:
            word = self._word[()]
            chosen = self._versions_of(conditions, names, label, key)
            route = decide(*conditions, names=chosen, **choices)
            if self._word[()] == word:  # else a label may have moved between the two
                return route

    def _decide(self, asked: Asked, key: Any) -> Route:
        """The decision, kept under `key` unless that is None."""
        decisions = self._decisions
        if not self._are_valid(decisions):
            decisions = self._in_gate(partial(self._load_decision, asked))
        while True:
            try:
                route = decisions.decide(asked)  # outside the gate: it calls functions of the program
            except NoCandidateError as error:
                if not error.excluded:
                    from dspy_registry.readers.near_words import tell_near_capabilities  # for a mistake of the caller

                    self._in_transaction(tell_near_capabilities, error, asked)
                raise
            if route is None:
                decisions = self._in_gate(partial(self._load_decision, asked))
            else:
                break
        if key is not None:
            decisions.keep(key, route)
        return route

    def _are_valid(self, decisions: Decisions) -> bool:
        """Whether what they rest on is unchanged."""
        return (
            self._every_word == decisions.words
            and self._health.current() is decisions.health
            and boot_seconds() < decisions.ends
        )

    def _load_decision(self, asked: Asked) -> Decisions:
        """Decisions that hold what `asked` needs, all read in one transaction. Call it inside the gate."""
        environment = self._live()
        while True:
            words: Words = tuple(self._every_word)  # first: it may not say more than the health that is read
            health = self._health.current()
            with environment.reading() as txn:
                if (self._word[()], self._usage_word[()]) != (words[0], words[2]) and not is_retired(words[0]):
                    continue
                decisions = self._decisions
                if not self._are_valid(decisions) or health is not decisions.health:
                    revision = lookup.load_state(txn, environment.dbs).revision
                    decisions = self._new_decisions(words, health, revision)
                decisions.load(txn, environment.dbs, asked)
            # While word or count is odd, a commit may land, or another list of health be in force, at any moment.
            if words[0] % 2 == words[3] % 2 == 0 and self._cache.size:
                self._decisions = decisions
            return decisions

    def _new_decisions(self, words: Words, health: Known, revision: int) -> Decisions:
        sources = Sources(self._weights, self._min_observed_calls, self._advise)
        return begun(words, revision, health, sources, self._decisions)

    def _estimate_and_keep(self, name: str, input_size: str, basis: str) -> int:
        name = plain_name(name)
        words = self._word[()], self._usage_word[()]
        milliseconds = super().estimate_duration(name, input_size, basis)
        if self._may_keep(words):
            self._advice_at(words).estimates[name, input_size, basis] = milliseconds
        return milliseconds

    def _recommend_and_keep(
        self, name: str, input_size: int | None, optimize_latency: bool, basis: str
    ) -> Recommendation:
        name = plain_name(name)
        words = self._word[()], self._usage_word[()]
        seen = (self._own.changes(),) if basis != DECLARED and self._own.tellers else ()
        advised = super().routing_recommendation(name, input_size, optimize_latency, basis)
        if self._may_keep(words):
            key = (name, input_size, optimize_latency, basis, *seen)
            self._advice_at(words).recommendations[key] = advised
        return advised

    def _may_keep(self, words: tuple[float, float]) -> bool:
        """Whether what was read after these words may be kept: a commit under way may land at any moment."""
        return self._cache.size > 0 and words[0] % 2 == 0

    def _advice_at(self, words: tuple[float, float]) -> AdviceKept:
        kept = self._advice
        if tuple(kept.words) != words or kept.is_full:
            kept = self._advice = AdviceKept(*words)
        return kept
