"""The decisions of `route` that are kept, as long as what they rest on is unchanged.

Kept are the numbers of each set of candidates, and whole routes by the arguments that gave them. All are dropped when a
word changes, when the minute ends (failure rates count minutes), and when a circuit's deadline passes. A deadline
passes while the host is suspended, too. The end of a minute may be noticed up to a minute of running time after that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import inf, isnan, nan
from typing import Any, Final

import msgspec

from dspy_registry.readers.asked import Asked
from dspy_registry.readers.candidates import (
    Candidates,
    KnownModule,
    Moment,
    Terms,
    candidates_of,
    load_candidates,
    load_excluded,
)
from dspy_registry.readers.policies import load_declarations
from dspy_registry.readers.ranking import Identity
from dspy_registry.readers.route import Advise, Route, decide
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.host_health import Known as Health
from dspy_registry.registry_store.policy import Declaration
from dspy_registry.registry_store.revision import RETIRED, private_words

Words = tuple[float, ...]
"""As `RevisionFile.every_word` has them: word, nothing, usage word, health count."""

_OF_RECORDS: Final = 3  # the words that say whether records and usage are unchanged
_MOST_ROUTES: Final = 4096
_MOST_FACTS: Final = 65_536
_SECONDS_A_MINUTE: Final = 60
_LOOK_FOR_HEALTH_EVERY: Final = 1.0
"""Seconds that decisions last while there is no health file: no word says when there is one."""


class Decisions:
    """What was decided while the shared words are `words` and health is `health`, and until `ends`.

    `words` has every word of the revision file: the published health is unchanged while they are. `health` is compared
    beside it for what this process counts itself. `ends` is on the boot-time clock. `awake_ends` is the same moment on
    the monotonic clock, which is read in half the time, but stands still while the host is suspended: 0.0 where a
    circuit has a deadline. Change it only inside the gate, except for adding a route.
    """

    __slots__ = (
        "_advise",
        "_excluded",
        "_known",
        "_moment",
        "_policies",
        "_room",
        "_sets",
        "_terms",
        "awake_ends",
        "ends",
        "health",
        "routes",
        "words",
    )

    def __init__(self, words: Words, health: Health, ends: float, awake_ends: float = 0.0) -> None:
        self.words = private_words(*words)
        self.health = health
        self.ends = ends
        self.awake_ends = awake_ends
        self.routes: dict[Any, Route] = {}
        self._known: dict[str, KnownModule] = {}
        self._excluded: dict[str, str | Identity] = {}
        self._policies: tuple[Declaration, ...] | None = None
        self._sets: dict[tuple[object, ...], Candidates] = {}
        self._room = _MOST_FACTS
        self._terms: Terms
        self._moment: Moment
        self._advise: Advise

    def begin(self, terms: Terms, moment: Moment, advise: Advise, former: Decisions) -> None:
        """Take over what was read at the same words, if only the minute or the health has changed."""
        self._terms, self._moment, self._advise = terms, moment, advise
        if tuple(former.words)[:_OF_RECORDS] == tuple(self.words)[:_OF_RECORDS]:
            self._known, self._excluded, self._policies = former._known, former._excluded, former._policies

    def load(self, txn: Transaction, dbs: Databases, asked: Asked) -> None:
        """Read what `decide` needs. Raises UnknownModuleError, AmbiguousNameError, CorruptRecordError."""
        load_excluded(txn, dbs, asked.exclude, self._excluded)
        if asked.among not in self._sets:
            if self._policies is None:
                self._policies = load_declarations(txn, dbs)
            known = load_candidates(txn, dbs, asked, self._known, self._policies)
            self._keep(asked, candidates_of(known, asked.size, asked.basis, self._terms))

    def decide(self, asked: Asked) -> Route | None:
        """The decision; None: it needs `load` first. Raises NoCandidateError, and what the caller's functions raise."""
        candidates = self._sets.get(asked.among)
        if candidates is None:
            return None
        exclude: tuple[str | Identity, ...] = ()
        if asked.exclude:
            try:
                exclude = tuple(self._excluded[name] for name in asked.exclude)
            except KeyError:
                return None
        return decide(candidates, asked, exclude, self._moment, self._advise)

    def keep(self, arguments: Any, route: Route) -> None:
        """Keep a route under the arguments of `route`."""
        if len(self.routes) >= _MOST_ROUTES:
            self.routes = {}
        self.routes[arguments] = route

    def _keep(self, asked: Asked, candidates: Candidates) -> None:
        self._room -= len(candidates.known) + 1
        if self._room < 0:
            self._sets, self._known, self._room = {}, {}, _MOST_FACTS
        self._sets[asked.among] = candidates


class Sources(msgspec.Struct, frozen=True):
    """What decisions take from the reader that makes them."""

    weights: Mapping[str, float]
    enough: int
    advise: Advise


def begun(words: Words, revision: int, health: Health, sources: Sources, former: Decisions) -> Decisions:
    """New decisions at these words, and the present time."""
    awake, now, unix = time.monotonic(), boot_seconds(), time.time()
    ends = ends_at(now, unix, health)
    has_deadline = health.next_change(now) < inf  # it passes while the host is suspended, too
    decisions = Decisions(words, health, ends, 0.0 if has_deadline else awake + (ends - now))
    terms = Terms(sources.weights, sources.enough, health, now, int(unix // _SECONDS_A_MINUTE))
    health_word = 0 if isnan(health.word) else int(health.word)
    moment = Moment(revision, int(words[2]), health_word, terms.minute, sources.enough)
    decisions.begin(terms, moment, sources.advise, former)
    return decisions


def ends_at(now: float, unix: float, health: Health) -> float:
    """When decisions made now end, on the boot-time clock, which says `now`. `unix` is the Unix time."""
    minute_ends = now + _SECONDS_A_MINUTE - unix % _SECONDS_A_MINUTE
    look_again = now + _LOOK_FOR_HEALTH_EVERY if isnan(health.word) else inf
    return min(minute_ends, look_again, health.next_change(now))


NOTHING_DECIDED: Final = Decisions((RETIRED, 0.0, RETIRED, RETIRED), Health(nan), 0.0)
