"""What a `Registry` says about its host: which modules are healthy, how many calls may begin, and who may probe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol
from weakref import WeakMethod

import msgspec

from dspy_registry.readers.cold_reads import ColdReads
from dspy_registry.readers.limits import Holder, LimitedCall, all_holders
from dspy_registry.readers.policies import ModulePolicy, PolicyCache, load_declarations, load_name_and_pool
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.arguments import plain_name, wrong_type
from dspy_registry.registry_store.circuit import DEFAULTS, CircuitRow, CircuitRules, rules_of
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.health_file import HealthEntry, entries
from dspy_registry.registry_store.host_health import IN_FORCE, HostHealth
from dspy_registry.registry_store.policy import Limit

if TYPE_CHECKING:
    from dspy_registry.readers.limits_async import AsyncLimitedCall
    from dspy_registry.readers.probes import Probe


class Target(Protocol):
    """A route or a candidate: one module version, and how to call it."""

    @property
    def name(self) -> str:
        """The module's full name."""

    @property
    def version(self) -> int:
        """The version that is to be called."""

    @property
    def recommendation(self) -> Recommendation:
        """How to call it. Its timeout is how long a probe may last."""


class HostReads(ColdReads):
    """Health, limits and policies, as `Registry` offers them."""

    __slots__ = ("__weakref__",)

    @property
    def host_health(self) -> HostHealth:
        """The health that decisions rest on. For a kept answer compare its `word` and `known`: see `HostHealth`."""
        return self._own.health

    def health(self) -> list[HealthEntry]:
        """The module versions that are not healthy on this host now, by name and version; []: all are healthy.

        While no daemon takes this process's reports, what it saw itself is in it. A copy.
        """
        found: dict[tuple[str, int], CircuitRow] = {}
        for row in map(self._named, self._own.health.looked_up().rows):
            key = row.name, row.version
            if key not in found or found[key].until < row.until:
                found[key] = row
        return entries(found.values())

    def _named(self, row: CircuitRow) -> CircuitRow:
        """A row that this process counted without a version, under the module's full name and version in force."""
        if row.version != IN_FORCE:
            return row
        try:
            stored = self.describe(row.name)
        except (RegistryError, TypeError):  # it is not registered
            return row
        return msgspec.structs.replace(row, name=stored.info.name, version=stored.provenance.version)

    def limits_of(self, name: str) -> tuple[Limit, ...]:
        """The limits that a call of a module begins under, its own and its pool's, by key; (): there are none.

        `name` and errors are as for `policy`.
        """
        known = self._policies  # as `_policy_of`, without a call: a routed call asks each time
        if self._word[()] == known.word:
            try:
                return known.by_name[name].limits
            except (KeyError, TypeError):
                pass
        return self._policy_of(name).limits

    def limit(self, name: str, *, patience: float | None = None) -> LimitedCall:
        """One call of a module under its limits and those of its pool, for the length of a `with`.

        `patience` is how many seconds to wait for a call that may begin; 0: do not wait, None: no end. A module without
        a limit begins at once. Entering raises LimitReachedError (a TimeoutError), which names the limit and who holds
        its calls, StoreError and StorePermissionError. This raises UnknownModuleError, AmbiguousNameError, and
        InvalidArgumentError for another patience.
        """
        return LimitedCall(self._leases, self._policy_of(name).limits, patience)

    def alimit(self, name: str, *, patience: float | None = None) -> AsyncLimitedCall:
        """`limit` for asyncio, for the length of an `async with`. A task that waits does not block its loop."""
        from dspy_registry.readers.limits_async import AsyncLimitedCall  # a worker without it loads no asyncio

        return AsyncLimitedCall(self.limit(name, patience=patience))

    def limited_calls(self) -> list[Holder]:
        """Each call under a limit that is under way on this host: its limit, its process, and for how long.

        `Holder.pid` 0: it is not known. Raises StoreError, StorePermissionError. A copy.
        """
        return all_holders(self._leases)

    def probe(self, target: Target) -> Probe | None:
        """The right to try a half-open module version, for as long as its recommended timeout. None: another has it.

        `target` is a route or one of its candidates. At most one process of the host has the right. Call `end` of the
        probe after the call; `end(ok=False)` if it failed. Raises StoreError, StorePermissionError.
        """
        if not isinstance(getattr(target, "recommendation", None), Recommendation):
            raise wrong_type("target", "a route or a candidate", target)
        from dspy_registry.readers.probes import SETTLES, claim_probe  # most workers probe nothing

        seconds = target.recommendation.timeout_seconds + SETTLES  # the daemon hears of a timeout later than its moment
        return claim_probe(self._leases, target.name, target.version, seconds)

    def _policy_of(self, name: str) -> ModulePolicy:
        known = self._policies
        if self._word[()] == known.word:
            try:
                return known.by_name[name]
            except (KeyError, TypeError):
                pass
        return self._in_gate(partial(self._load_policy, plain_name(name)))

    def _load_policy(self, name: str) -> ModulePolicy:
        word = self._word[()]  # before the transactions: what they read is of this word, or the word changes
        known = self._policies
        if known.word != word:
            known = self._policies = PolicyCache(word, self._in_transaction(load_declarations))
        return known.decided(name, *self._in_transaction(load_name_and_pool, name))

    def _open(self) -> None:
        super()._open()
        self._own.health.rules = partial(_rules_by, WeakMethod(self._circuit_rules))

    def _circuit_rules(self, name: str) -> CircuitRules:
        """The rules of a circuit that this process keeps itself. Of what cannot be found: the defaults."""
        try:
            return rules_of(self._policy_of(name).policy)
        except (RegistryError, TypeError):
            return DEFAULTS


def _rules_by(asked: WeakMethod[Callable[[str], CircuitRules]], name: str) -> CircuitRules:
    """The rules that a registry tells, as long as anybody has it."""
    rules = asked()
    return DEFAULTS if rules is None else rules(name)
