"""The queries that `Registry` and `Snapshot` share, and their documentation. Each is built from a few reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any

from dspy_registry.readers import observed, routing
from dspy_registry.readers.observed import AUTO, DECLARED
from dspy_registry.readers.plan import Plan, plan_find
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.errors import AmbiguousNameError, UnknownModuleError
from dspy_registry.registry_store.records import ModuleInfo, StoredModule
from dspy_registry.registry_store.usage import Durations, ModuleUsage, size_class


def not_a_name(name: object) -> TypeError:
    """The error for a name that is not a string."""
    return TypeError(f"a module's name is a str, not {type(name).__name__}")


class _Items(ItemsView[str, ModuleInfo]):
    _mapping: Mapping[str, ModuleInfo]

    def __iter__(self) -> Iterator[tuple[str, ModuleInfo]]:
        for name in self._mapping:
            info = self._mapping.get(name)
            if info is not None:
                yield name, info


class _Values(ValuesView[ModuleInfo]):
    _mapping: Mapping[str, ModuleInfo]

    def __iter__(self) -> Iterator[ModuleInfo]:
        for _, info in _Items(self._mapping):
            yield info


class Queries(Mapping[str, ModuleInfo]):
    """Look-ups by name, capability, category and need. As a mapping, it has full names only, in registration order.

    Everything returned is a copy out of the database, so it may be kept. A record may be shared with other callers in
    the process: do not change its `metadata` or `requirements.extra`. Every method raises StoreClosedError after
    `close`, CorruptRecordError for stored bytes that are damaged, and StoreError when LMDB fails.
    """

    __slots__ = ()

    _weights: Mapping[str, float]
    _min_observed_calls: int

    @abstractmethod
    def _fetch(self, name: str) -> ModuleInfo | None:
        """The module of a full name, an alias or a short name. None: there is none. Raises AmbiguousNameError."""

    @abstractmethod
    def _unknown(self, name: object) -> UnknownModuleError:
        """The error for a name that no module has."""

    @abstractmethod
    def _execute(self, plan: Plan) -> tuple[str, ...]:
        """The names of the modules that meet a plan."""

    @abstractmethod
    def describe(self, name: str) -> StoredModule:
        """The module with its version, revision, time of change and source.

        `name` is a full name, an alias or a short name. Raises UnknownModuleError, AmbiguousNameError, and TypeError
        for a name that is not a string.
        """

    @abstractmethod
    def history(self, name: str) -> tuple[StoredModule, ...]:
        """The versions kept of a module, newest first: the one in force, and the last 16 that were replaced.

        `name` is a full name, an alias or a short name. The versions of an unregistered module are found by its full
        name. Raises UnknownModuleError when nothing is kept, AmbiguousNameError, and CorruptRecordError, which names
        the version that is damaged.
        """

    @abstractmethod
    def _usage_of(self, name: str) -> ModuleUsage:
        """The usage stored under this full name. All zero: nothing is stored."""

    @abstractmethod
    def usages(self) -> list[ModuleUsage]:
        """What real calls have shown, of each module that was called, most used first; [] if there were no calls.

        Modules that were reported but are not registered are in it too.
        """

    # By name

    def get_module(self, name: str) -> ModuleInfo:
        """The module of a full name, an alias or a short name (`predict`, `Predict`).

        The record is shared with others who ask in this process: do not change its `metadata`. Raises
        UnknownModuleError (a KeyError) with the closest names, AmbiguousNameError with the candidates, and TypeError
        for a name that is not a string.
        """
        info = self._fetch(name)
        if info is None:
            raise self._unknown(name)
        return info

    def __getitem__(self, name: str) -> ModuleInfo:
        info = self._exact(name)
        if info is None:
            raise self._unknown(name)
        return info

    def __contains__(self, name: object) -> bool:
        return self._exact(name) is not None

    def get(self, name: str, default: Any = None) -> Any:
        """The module of this full name; `default` if there is none."""
        info = self._exact(name)
        return default if info is None else info

    def items(self) -> ItemsView[str, ModuleInfo]:
        """A view: (name, module) in registration order. It leaves out a module unregistered during the iteration."""
        return _Items(self)

    def values(self) -> ValuesView[ModuleInfo]:
        """A view: the modules in registration order. It leaves out a module unregistered during the iteration."""
        return _Values(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._execute(()))

    def _exact(self, name: object) -> ModuleInfo | None:
        if not isinstance(name, str):
            return None
        try:
            info = self._fetch(name)
        except AmbiguousNameError:  # so it is a short name, and not a key
            return None
        return info if info is not None and info.name == name else None

    # By what it can do and needs

    def find_by_capability(self, capability: str) -> tuple[str, ...]:
        """Names of the modules with a capability or one that implies it, in registration order; () if none has."""
        return self._execute(((f"capability:{capability}",),))

    def find_by_category(self, category: str) -> tuple[str, ...]:
        """Names of the modules of this category, in registration order; () if there are none."""
        return self._execute(((f"category:{category}",),))

    def find(
        self,
        capabilities: str | Iterable[str] | None = (),
        category: str | None = None,
        pool_type: str | None = None,
        native: bool | None = None,
        gpu: bool | None = None,
        max_memory: str | None = None,
        max_compute: str | None = None,
    ) -> tuple[str, ...]:
        """Names of the modules that meet all these conditions, in registration order; () if there are none.

        A module must have all of `capabilities` (one word or several), directly or implied. None leaves a condition
        out; without any, all modules meet them. `max_memory` and `max_compute` are levels, inclusive: low < medium <
        high < very_high. Raises InvalidArgumentError for another level.
        """
        return self._execute(plan_find(capabilities, category, pool_type, native, gpu, max_memory, max_compute))

    # Routing

    def get_pool_type(self, name: str) -> str:
        """The name of the pool that runs a module. Raises UnknownModuleError, AmbiguousNameError."""
        return self.get_module(name).pool_type

    def has_native(self, name: str) -> bool:
        """Whether a module has a native implementation. False if there is no such module. Raises AmbiguousNameError."""
        info = self._fetch(name)
        return info is not None and info.native_available

    def usage(self, name: str) -> ModuleUsage:
        """What real calls have shown of a module: how many, how long, at what cost. All zero: there were no calls.

        `name` is a full name, an alias, a short name, or a name that was reported and is not registered. Raises
        UnknownModuleError for any other, AmbiguousNameError.
        """
        info = self._fetch(name)
        found = self._usage_of(name if info is None else info.name)
        if info is None and not found.calls:
            raise self._unknown(name)
        return found

    def estimate_duration(self, name: str, input_size: str = "normal", basis: str = DECLARED) -> int:
        """Typical milliseconds for a `small`, `normal`, `large` or `very_large` input: x 0.5, 1, 2, 5.

        A half is rounded up. `basis` is `declared`; `observed`, the median of calls with such an input, once there are
        enough; or `auto`, which is declared again while the module is newer than its last call. See
        docs/statistics.md. Raises UnknownModuleError, AmbiguousNameError, InvalidArgumentError.
        """
        info = self.get_module(name)
        declared = routing.scaled_duration(info.estimated_duration, input_size)
        seen = None if basis == DECLARED else self._observed(info, input_size, basis)
        return declared if seen is None else observed.observed_duration(seen)

    def routing_recommendation(
        self,
        name: str,
        *,
        input_size: int | None = None,
        optimize_latency: bool = False,
        basis: str = DECLARED,
    ) -> Recommendation:
        """Pool, timeout, whether to prefer the native implementation, and cost of one call.

        `input_size` is a number of characters; None: not known, which counts as small. `optimize_latency` asks for the
        native implementation where there is one. `basis` is `declared`; `observed`, with the timeout from the 99th
        percentile of calls with such an input, once there are enough; or `auto`, which is declared again while the
        module is newer than its last call. See docs/statistics.md. Raises UnknownModuleError, AmbiguousNameError,
        InvalidArgumentError.
        """
        info = self.get_module(name)
        cost = self._usage_of(info.name).cost_usd_per_call
        declared = routing.recommend(info, input_size, optimize_latency, self._weights, cost)
        seen = None if basis == DECLARED else self._observed(info, size_class(input_size), basis)
        return declared if seen is None else observed.observed_recommendation(declared, info, seen, self._weights)

    def _observed(self, info: ModuleInfo, input_size: str, basis: str) -> Durations | None:
        """The durations that the basis takes in place of the declared one. None: the declared one counts."""
        observed.check_basis(basis)
        usage = self._usage_of(info.name)
        seen = observed.observed_durations(usage, input_size, self._min_observed_calls)
        if seen is not None and basis == AUTO and self.describe(info.name).provenance.updated_at > usage.last_used:
            return None
        return seen
