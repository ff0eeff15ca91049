"""The modules that a route chooses among: read in one transaction, and turned into the numbers that are ranked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from dspy_registry.readers import observed, routing
from dspy_registry.readers.asked import Asked
from dspy_registry.readers.observed import DECLARED
from dspy_registry.readers.plan import execute
from dspy_registry.readers.ranking import Facts, Field, Identity, prior_rate
from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.advice import Standing
from dspy_registry.registry_store.circuit import state_at
from dspy_registry.registry_store.errors import (
    AmbiguousNameError,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.host_health import Known as Health
from dspy_registry.registry_store.outcome_kinds import CALLER, KINDS
from dspy_registry.registry_store.policy import Declaration, Policy, effective_policy
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.usage import MINUTES_KEPT, Ring, VersionUsage
from dspy_registry.registry_store.usage_rows import InForce, load_in_force, load_usage

_NOTHING_SEEN: Final = Standing()
_CALLER_AT: Final = KINDS.index(CALLER)


class KnownModule(msgspec.Struct, frozen=True, gc=False):
    """A module as `asked`, with the usage of its version in force.

    `life_usd` is the mean cost of a call of the module over its life, in US dollars; None: no call told its cost.
    `max_timeout` is what its policy allows, in seconds; None: no policy does.
    """

    asked: str
    found: InForce
    life_usd: float | None
    max_timeout: float | None

    @property
    def identity(self) -> Identity:
        """Two versions of a module are two candidates, however they are asked for."""
        return self.found.info.name, self.found.usage.version

    @property
    def usd(self) -> tuple[float | None, str]:
        """US dollars per call, and where that comes from; None: it is not known."""
        info, usage = self.found.info, self.found.usage
        own = usage.cost_usd_per_call
        if own is not None:
            return own, f"observed of version {usage.version}"
        if self.life_usd is not None:
            return self.life_usd, "observed of earlier versions"
        declared = routing.declared_cost(info.metadata)
        return declared, "not known" if declared is None else "declared"


class Terms(msgspec.Struct, frozen=True):
    """What the numbers of candidates depend on beside the candidates.

    `now` is on the boot-time clock, `minute` since the epoch.
    """

    weights: Mapping[str, float]
    enough: int
    health: Health
    now: float
    minute: int


class Moment(msgspec.Struct, frozen=True, gc=False):
    """What a decision rests on: a revision, a usage word and a health word. `minute` is counted since the epoch."""

    revision: int
    usage_word: int
    health_word: int
    minute: int
    enough: int


class Candidates(msgspec.Struct, frozen=True):
    """What is ranked, and what it was made of."""

    field: Field
    known: Mapping[Identity, KnownModule]


def load_candidates(
    txn: Transaction, dbs: Databases, asked: Asked, seen: dict[str, KnownModule], declared: Sequence[Declaration]
) -> list[KnownModule]:
    """The candidates in the order that decides ties. `seen` has those that were read at the same revision and usage.

    Raises UnknownModuleError, AmbiguousNameError, CorruptRecordError.
    """
    plan = asked.plan
    found = None if plan is None else execute(txn, dbs, plan)
    names = found or () if asked.names is None else asked.names
    try:
        known = [_load(txn, dbs, name, seen, declared) for name in names]
    except UnknownModuleError as error:
        raise _unknown(txn, dbs, names, error) from None
    if found is not None and asked.names is not None:
        wanted = frozenset(found)
        known = [each for each in known if each.found.info.name in wanted]
    return list({each.identity: each for each in reversed(known)}.values())[::-1]


def _unknown(txn: Transaction, dbs: Databases, names: Iterable[str], first: UnknownModuleError) -> UnknownModuleError:
    """The error for all of these names that no module has. `first` is that of the first one."""
    missing = [first]
    for name in names:
        with suppress(AmbiguousNameError):
            if name != first.name and lookup.resolve_selector(txn, dbs, name) is None:
                missing.append(lookup.unknown(txn, dbs, name))
    if len(missing) == 1:
        return first
    told = UnknownModuleError(first.name, dict.fromkeys(each for error in missing for each in error.closest[:1]))
    told.message = f"no modules are registered as {', '.join(repr(error.name) for error in missing)}."
    return told


def _load(
    txn: Transaction, dbs: Databases, name: str, seen: dict[str, KnownModule], declared: Sequence[Declaration]
) -> KnownModule:
    known = seen.get(name)
    if known is None:
        found = load_in_force(txn, dbs, name)
        life = load_usage(txn, dbs, found.info.name)
        policy = effective_policy(declared, found.info.name, found.info.pool_type) if declared else Policy()
        cost = None if life is None else life.cost_usd_per_call
        known = seen[name] = KnownModule(name, found, cost, policy.max_timeout)
    return known


def load_excluded(txn: Transaction, dbs: Databases, asked: Iterable[str], seen: dict[str, str | Identity]) -> None:
    """Add to `seen` what each of these means: a full name, a version, or itself if nothing has that name.

    Raises AmbiguousNameError, CorruptRecordError.
    """
    for name in asked:
        if name not in seen:
            seen[name] = _excluded(txn, dbs, name)


def _excluded(txn: Transaction, dbs: Databases, asked: str) -> str | Identity:
    name, selector = lookup.resolve_selector(txn, dbs, asked) or (asked, "")
    if not selector:
        return name
    try:
        return name, lookup.load_stored(txn, dbs, asked).provenance.version
    except (UnknownVersionError, UnknownLabelError):
        return asked


def candidates_of(known: Iterable[KnownModule], size: str, basis: str, terms: Terms) -> Candidates:
    """The numbers of each candidate, in the same order."""
    several = {each.identity: each for each in known}
    return Candidates(Field(_facts(each, size, basis, terms) for each in several.values()), several)


def _facts(known: KnownModule, size: str, basis: str, terms: Terms) -> Facts:
    info, usage = known.found.info, known.found.usage
    duration = expected_ms(info, usage, size, basis, terms.enough)
    failed, counted = last_hour(usage, terms.minute)
    until = terms.health.until(info.name, usage.version)
    return Facts(
        info.name,
        usage.version,
        float(duration),
        routing.compute_weight(info, terms.weights) * duration / 1000,
        known.usd[0],
        failed,
        counted,
        prior_rate(*life_of(usage)),
        state_at(until, terms.now),
        until,
    )


def expected_ms(info: ModuleInfo, usage: VersionUsage, size: str, basis: str, enough: int) -> int:
    """What `estimate_duration` says on this basis, in milliseconds."""
    declared = routing.scaled_duration(info.estimated_duration, size)
    if basis == DECLARED:
        return declared
    return observed.estimated_ms(usage.standing.get(size, _NOTHING_SEEN), declared, enough)


def is_observed(usage: VersionUsage, size: str, basis: str, enough: int) -> bool:
    """Whether `expected_ms` rests on calls."""
    return basis != DECLARED and usage.standing.get(size, _NOTHING_SEEN).completed >= max(1, enough)


def last_hour(usage: VersionUsage, minute: int) -> tuple[int, int]:
    """How many calls failed, of how many, in the 60 minutes up to this one."""
    return _sum(usage.failed, minute), _sum(usage.evaluated, minute)


def life_of(usage: VersionUsage) -> tuple[int, int]:
    """How many calls of the version failed, of how many, over its life; `caller` and `cancelled` in neither."""
    of_caller = usage.kinds[_CALLER_AT] if len(usage.kinds) > _CALLER_AT else 0
    return usage.errors, usage.calls - of_caller


def _sum(ring: Ring, minute: int) -> int:
    return sum(ring.until(minute, MINUTES_KEPT)) if ring.counts else 0
