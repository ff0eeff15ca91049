"""The queries that `Registry` and `Snapshot` share, and their documentation. Each is built from a few reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from types import NoneType
from typing import Any, overload

from dspy_registry.readers import observed, routing
from dspy_registry.readers.advising import NOTHING_SEEN, Advising
from dspy_registry.readers.asked import Accept, Preference, names_of
from dspy_registry.readers.by_name import ModulesByName
from dspy_registry.readers.observed import AUTO, DECLARED
from dspy_registry.readers.plan import plan_find, plan_term
from dspy_registry.readers.policies import ModulePolicy
from dspy_registry.readers.route import Route
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.arguments import check_text, check_type, plain_name
from dspy_registry.registry_store.errors import (
    UnknownLabelError,
)
from dspy_registry.registry_store.labels import Label
from dspy_registry.registry_store.policy import Policy
from dspy_registry.registry_store.records import ModuleInfo, StoredModule
from dspy_registry.registry_store.selection import Resolved, Selection
from dspy_registry.registry_store.usage import ModuleUsage, VersionUsage, size_class
from dspy_registry.registry_store.usage_rows import InForce
from dspy_registry.registry_store.validation import check_version


class Queries(Advising, ModulesByName):
    """Look-ups by name, capability, category and need. As a mapping, it has full names only, in registration order.

    Everything returned is a copy out of the database, so it may be kept. A record may be shared with other callers in
    the process: do not change its `metadata` or `requirements.extra`. Every method raises StoreClosedError after
    `close`, CorruptRecordError for stored bytes that are damaged, and StoreError when LMDB fails.
    """

    __slots__ = ()

    @abstractmethod
    def describe(self, name: str) -> StoredModule:
        """The module with its version, revision, time of change and source.

        `name` is a full name, an alias or a short name. Raises UnknownModuleError, AmbiguousNameError, and TypeError
        for a name that is not a string.
        """

    @abstractmethod
    def _select(self, name: str) -> Selection:
        """What was asked, resolved as far as it can be without a key."""

    def resolve(self, name: str, *, key: str | None = None) -> Resolved:
        """The full name and the version that a name means: `acme.Qa`, `acme.Qa@3`, `acme.Qa@live`, `acme.Qa@latest`.

        The part before the last @ is a full name, an alias or a short name. Without an @, and for `@latest`, it is the
        version in force. Of a label with weights, the same key gives the same version in every process; None: the
        version with the largest weight. Raises UnknownModuleError, AmbiguousNameError, UnknownVersionError and
        UnknownLabelError, which list what there is, and TypeError for a name or key that is not a string.
        """
        check_text("key", key)
        return self._select(name).choose(key)

    @abstractmethod
    def labels(self, name: str) -> dict[str, Label]:
        """The labels of a module, by label, in alphabetical order; {} if it has none. A copy.

        `name` is a full name, an alias or a short name. Raises UnknownModuleError, AmbiguousNameError.
        """

    @abstractmethod
    def history(self, name: str) -> tuple[StoredModule, ...]:
        """The versions kept of a module, newest first: the one in force, the last 16 replaced, and every labelled one.

        `name` is a full name, an alias or a short name. The versions of an unregistered module are found by its full
        name. Raises UnknownModuleError when nothing is kept, AmbiguousNameError, and CorruptRecordError, which names
        the version that is damaged.
        """

    @abstractmethod
    def _usage_of(self, name: str) -> ModuleUsage:
        """The usage stored under this full name. All zero: nothing is stored."""

    @abstractmethod
    def _version_usage(self, name: str, version: int) -> VersionUsage:
        """The usage stored of a version of the module of this full name. All zero: nothing is stored."""

    @abstractmethod
    def _in_force(self, name: str) -> InForce:
        """A module and the usage of its version in force, by a full name, an alias or a short name.

        Raises UnknownModuleError, AmbiguousNameError, and TypeError for a name that is not a string.
        """

    @abstractmethod
    def _policy_of(self, name: str) -> ModulePolicy:
        """What is decided about a module, by a full name, an alias or a short name. Raises as `_in_force` does."""

    @abstractmethod
    def usages(self) -> list[ModuleUsage]:
        """What real calls have shown, of each module that was called, most used first; [] if there were no calls.

        Modules that were reported but are not registered are in it too.
        """

    # By what it can do and needs

    def find_by_capability(self, capability: str) -> tuple[str, ...]:
        """Names of the modules with a capability or one that implies it, in registration order; () if none has."""
        return self._execute(plan_term("capability", capability))

    def find_by_category(self, category: str) -> tuple[str, ...]:
        """Names of the modules of this category, in registration order; () if there are none."""
        return self._execute(plan_term("category", category))

    def find(
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
    ) -> tuple[str, ...]:
        """Names of the modules that meet all these conditions, in registration order; () if there are none.

        A module must have all of `capabilities` (one word or several), at least one of `any_capabilities`, and none of
        `without_capabilities`, directly or implied. None and () leave a condition out; without any, all modules meet
        them. `max_memory` and `max_compute` are levels, inclusive: low < medium < high < very_high. Raises
        InvalidArgumentError for another level, TypeError for an argument of another type.
        """
        words = (any_capabilities, without_capabilities)
        return self._execute(plan_find(capabilities, category, pool_type, native, gpu, max_memory, max_compute, *words))

    @abstractmethod
    def implied_capabilities(self, name: str) -> tuple[str, ...]:
        """The capabilities that a module has only because others of its capabilities imply them, sorted.

        `name` and errors are as for `describe`.
        """

    @abstractmethod
    def overridden(self, name: str) -> tuple[str, ...]:
        """The sources that a client's record overrides, highest precedence first; () if the record is no override.

        What they declare of the module does not count until `release`. `name` and errors are as for `describe`.
        """

    # Routing

    @abstractmethod
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
        """Which module to call, and which others if that fails. docs/routing.md has the formula and the reasons.

        Candidates are the modules of `names` (full names, aliases, short names), or those that `find` returns for the
        same conditions, or those of `names` that meet the conditions; without both, all modules. A name may say a
        version: `acme.Qa@3`, `acme.Qa@live`; two versions of a module are two candidates. `label` is the one for all
        names without; a module that conditions find and that has no such label is left out. `key` is as for `resolve`.
        Left out are those in `exclude` (a name with a version: that version), those expected to take longer than
        `deadline_ms` milliseconds, those whose cost is above `max_cost_usd` or not known, those for which `accept`,
        called with a Candidate, returns something false, and those whose circuit is open. None: no limit.

        `prefer` is `latency`, `cost`, `reliability`, `balanced` (latency and cost alike), or a function that is called
        with the tuple of candidates and returns them best first; it leaves out those it does not return. `input_size`
        is in characters, None: not known, which counts as normal. `basis` is that of `estimate_duration`.

        The answer is kept by these arguments; with a function or a list among them it is computed each time. When the
        circuits of all that are left are open, the one that ends first is chosen, and `degraded` is True. Raises
        NoCandidateError with every exclusion when nothing is left, UnknownModuleError and AmbiguousNameError for
        `names`, InvalidArgumentError with all that is wrong, and TypeError.
        """

    def _versions_of(
        self, conditions: tuple[Any, ...], names: str | Iterable[str] | None, label: str | None, key: str | None
    ) -> tuple[str, ...] | None:
        """The candidates of a route, each as `name@version`. None: neither names nor a label say which."""
        check_text("label", label)
        check_text("key", key)
        if names is None and label is None:
            return None
        asked = self.find(*conditions) if names is None else names_of("names", names)
        chosen = []
        for name in asked:
            versioned = name if label is None or "@" in name else f"{name}@{label}"
            try:
                chosen.append(str(self.resolve(versioned, key=key)))
            except UnknownLabelError:
                if names is not None:
                    raise
        return tuple(chosen)

    def get_pool_type(self, name: str) -> str:
        """The name of the pool that runs a module. Raises UnknownModuleError, AmbiguousNameError."""
        return self.get_module(name).pool_type

    def has_native(self, name: str) -> bool:
        """Whether a module has a native implementation. False if there is no such module. Raises AmbiguousNameError."""
        info = self._fetch(name)
        return info is not None and info.native_available

    @overload
    def usage(self, name: str, version: None = None) -> ModuleUsage: ...
    @overload
    def usage(self, name: str, version: int | str) -> VersionUsage: ...
    def usage(self, name: str, version: int | str | None = None) -> ModuleUsage | VersionUsage:
        """What real calls have shown of a module: how many, how long, at what cost. All zero: there were no calls.

        `name` is a full name, an alias, a short name, or a name that was reported and is not registered. `version` is
        a version or a label: then it is what calls of that version have shown, as long as the version is kept. None:
        of all together, over the module's life. `acme.Qa@live` and `acme.Qa@3` are as the name with that version.
        Raises UnknownModuleError for any other name, AmbiguousNameError, UnknownLabelError, and InvalidArgumentError
        for what is no version.
        """
        name = plain_name(name)
        check_type("version", version, int, str, NoneType)
        if isinstance(version, str):
            if version.isdecimal():  # a text such as "3" is no label
                check_version(version)
            version = self.resolve(f"{name}@{version}").version
        check_version(version)
        info = self._fetch(name)
        if info is not None and version is None and "@" in name:
            found = self._select(name)
            version = found.choose(None).version if found.is_of_version else None
        if info is not None and version is not None:
            return self._version_usage(info.name, version)
        usage = self._usage_of(name if info is None else info.name)
        if info is None and not usage.calls:
            raise self._unknown(name)
        return usage if version is None else VersionUsage(name, version)

    def estimate_duration(self, name: str, input_size: str = "normal", basis: str = DECLARED) -> int:
        """Typical milliseconds for a `small`, `normal`, `large` or `very_large` input: x 0.5, 1, 2, 5.

        A half is rounded up. `basis` is `declared`; or `observed` or `auto`, the median of the last calls of the
        version in force with such an input, once enough of them completed. See docs/statistics.md. Raises
        UnknownModuleError, AmbiguousNameError, InvalidArgumentError.
        """
        check_type("input_size", input_size, str)
        check_type("basis", basis, str)
        if basis == DECLARED:
            return routing.scaled_duration(self.get_module(name).estimated_duration, input_size)
        observed.check_basis(basis)
        found = self._in_force(name)
        declared = routing.scaled_duration(found.info.estimated_duration, input_size)
        standing = found.usage.standing.get(input_size, NOTHING_SEEN)
        return observed.estimated_ms(standing, declared, self._min_observed_calls)

    def routing_recommendation(
        self,
        name: str,
        input_size: int | None = None,
        optimize_latency: bool = False,
        basis: str = DECLARED,
    ) -> Recommendation:
        """Pool, timeout, whether to prefer the native implementation, and cost of one call.

        `input_size` is a number of characters; None: not known, which counts as small. `optimize_latency` asks for the
        native implementation where there is one. `basis` is `declared`; `observed`, with the timeout that calls of the
        version in force with such an input need, and what this process has just seen itself; or `auto`, which is at
        least what is declared. Neither is above the module's `Policy.max_timeout`. See docs/statistics.md. Raises
        UnknownModuleError, AmbiguousNameError, InvalidArgumentError.
        """
        check_type("input_size", input_size, int, NoneType)
        check_type("optimize_latency", optimize_latency, bool)
        check_type("basis", basis, str)
        if basis == DECLARED:
            return self._declared(self.get_module(name), input_size, optimize_latency)
        observed.check_basis(basis)
        found = self._in_force(name)
        declared = self._declared(found.info, input_size, optimize_latency)
        longest = self._policy_of(found.info.name).policy.max_timeout
        size = size_class(input_size)
        return self._observed(found, declared, size, basis, longest, self._seen(found, size))

    def policy(self, name: str) -> Policy:
        """What is decided about a module: for each field, by the policy that wins. A field that is None is not set.

        `max_concurrency` is the module's own; its pool may have another. `name` is a full name, an alias or a short
        name. Raises UnknownModuleError, AmbiguousNameError, TypeError for a name that is not a string.
        """
        return self._policy_of(name).policy

    def _declared(self, info: ModuleInfo, input_size: int | None, optimize_latency: bool) -> Recommendation:
        cost = self._usage_of(info.name).cost_usd_per_call
        return routing.recommend(info, input_size, optimize_latency, self._weights, cost)
