"""The queries that a registry and a snapshot of it share, each in terms of a few reads."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterable, Iterator, Mapping, ValuesView
from typing import Any

from dspy_registry.readers import observed as usage
from dspy_registry.readers import routing
from dspy_registry.readers.observed import DECLARED
from dspy_registry.readers.plan import Plan, plan_find
from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.errors import AmbiguousNameError, UnknownModuleError
from dspy_registry.registry_store.records import ModuleInfo, StoredModule
from dspy_registry.registry_store.usage import ModuleUsage


def not_a_name(name: object) -> TypeError:
    """The error for asking by something that is no string."""
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
    """Look-ups by name, capability, category and need. As a mapping: full names only, in registration order.

    Everything returned is a copy out of the database, and may be kept; a record may be shared with other callers
    in the process, so its `metadata` must not be changed.
    """

    __slots__ = ()

    _weights: Mapping[str, float]
    _min_observed_calls: int

    @abstractmethod
    def _fetch(self, name: str) -> ModuleInfo | None:
        """The module of a full or short name; None when there is none. Raises AmbiguousNameError."""

    @abstractmethod
    def _unknown(self, name: object) -> UnknownModuleError:
        """The error for a name that nothing fits."""

    @abstractmethod
    def _answer(self, plan: Plan) -> tuple[str, ...]:
        """The names that fit a plan."""

    @abstractmethod
    def describe(self, name: str) -> StoredModule:
        """The module with its version, revision, time and source. Raises UnknownModuleError, AmbiguousNameError."""

    @abstractmethod
    def history(self, name: str) -> tuple[StoredModule, ...]:
        """The versions kept of a module, newest first: the one in force, and the last 16 that it replaced.

        `name` is a full name, an alias or a short name. Of a module that was unregistered, by its full name, what is
        still kept. Raises UnknownModuleError when that is nothing, AmbiguousNameError, CorruptRecordError naming
        the version that is damaged.
        """

    @abstractmethod
    def _usage_of(self, name: str) -> ModuleUsage:
        """What is stored under this full name, all zero when nothing is."""

    @abstractmethod
    def usages(self) -> list[ModuleUsage]:
        """What real calls have shown of each module that has some, registered or not, most used first."""

    # By name

    def get_module(self, name: str) -> ModuleInfo:
        """The module of a full name, an alias or a short name (`predict`, `Predict`).

        Raises UnknownModuleError (a KeyError) with the closest names, AmbiguousNameError with the candidates.
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
        """The module of this full name, else `default`."""
        info = self._exact(name)
        return default if info is None else info

    def items(self) -> ItemsView[str, ModuleInfo]:
        """(name, module) in registration order. A module that goes while this is iterated is left out."""
        return _Items(self)

    def values(self) -> ValuesView[ModuleInfo]:
        """The modules in registration order. One that goes while this is iterated is left out."""
        return _Values(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._answer(()))

    def _exact(self, name: object) -> ModuleInfo | None:
        if not isinstance(name, str):
            return None
        try:
            info = self._fetch(name)
        except AmbiguousNameError:  # a short name, then, and not a key
            return None
        return info if info is not None and info.name == name else None

    # By what it can do and needs

    def find_by_capability(self, capability: str) -> tuple[str, ...]:
        """Names of the modules with a capability, or one that implies it, in registration order; () when none."""
        return self._answer(((f"capability:{capability}",),))

    def find_by_category(self, category: str) -> tuple[str, ...]:
        """Names of the modules of a category, in registration order; () when none."""
        return self._answer(((f"category:{category}",),))

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
        """Names of the modules that have all these capabilities and meet every other condition given.

        None means that a condition is not asked. `max_memory` and `max_compute` are levels, inclusive. Raises
        InvalidArgumentError for another level.
        """
        return self._answer(plan_find(capabilities, category, pool_type, native, gpu, max_memory, max_compute))

    # Routing

    def get_pool_type(self, name: str) -> str:
        """The pool that runs a module. Raises UnknownModuleError, AmbiguousNameError."""
        return self.get_module(name).pool_type

    def has_native(self, name: str) -> bool:
        """Whether a native implementation exists; False for a missing module too."""
        info = self._fetch(name)
        return info is not None and info.native_available

    def usage(self, name: str) -> ModuleUsage:
        """What real calls have shown of a module: how many, how long, at what cost; all zero when there were none.

        `name` may also be one that was reported and is not registered. Raises UnknownModuleError for a name that
        is neither, AmbiguousNameError.
        """
        info = self._fetch(name)
        found = self._usage_of(name if info is None else info.name)
        if info is None and not found.calls:
            raise self._unknown(name)
        return found

    def estimate_duration(self, name: str, input_size: str = "normal", basis: str = DECLARED) -> int:
        """Typical milliseconds for a `small`, `normal`, `large` or `very_large` input (x 0.5, 1, 2, 5).

        Rounded half away from zero. `basis` is `declared`, `observed` (the median of calls with such an input, once
        there are enough) or `auto`; see docs/statistics.md. Raises UnknownModuleError, InvalidArgumentError.
        """
        if basis != DECLARED:
            return usage.observed_duration(self, name, input_size, basis)
        return routing.scaled_duration(self.get_module(name).estimated_duration, input_size)

    def routing_recommendation(
        self,
        name: str,
        *,
        input_size: int | None = None,
        optimize_latency: bool = False,
        basis: str = DECLARED,
    ) -> Recommendation:
        """Pool, timeout, whether to prefer the native implementation, and cost of one call.

        `input_size` is a count of characters; None: not known. `basis` is `declared`, `observed` (the timeout from
        the 99th percentile of calls with such an input, once there are enough) or `auto`; see docs/statistics.md.
        Raises UnknownModuleError, InvalidArgumentError.
        """
        if basis != DECLARED:
            return usage.observed_recommendation(self, name, input_size, optimize_latency, basis)
        info = self.get_module(name)
        cost = self._usage_of(info.name).cost_usd_per_call
        return routing.recommend(info, input_size, optimize_latency, self._weights, cost)
