"""Look-ups by name: what makes a registry a mapping of full names to modules."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from typing import Any

from dspy_registry.readers.plan import Plan
from dspy_registry.readers.views import Items, Values
from dspy_registry.registry_store.arguments import plain_name
from dspy_registry.registry_store.errors import (
    AmbiguousNameError,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)
from dspy_registry.registry_store.records import ModuleInfo


class ModulesByName(Mapping[str, ModuleInfo]):
    """As a mapping, it has full names only, in registration order. `get_module` takes other names, too."""

    __slots__ = ()

    @abstractmethod
    def _fetch(self, name: str) -> ModuleInfo | None:
        """The module of a full name, an alias or a short name. None: there is none. Raises AmbiguousNameError."""

    @abstractmethod
    def _unknown(self, name: object) -> UnknownModuleError:
        """The error for a name that no module has."""

    @abstractmethod
    def _execute(self, plan: Plan) -> tuple[str, ...]:
        """The names of the modules that meet a plan."""

    def get_module(self, name: str) -> ModuleInfo:
        """The module of a full name, an alias or a short name (`predict`, `Predict`).

        After an @ stands a version or a label: `acme.Qa@3`, `acme.Qa@champion`. Without one, it is the version in
        force. The record is shared with others who ask in this process: do not change its `metadata`. Raises
        UnknownModuleError (a KeyError) with the closest names, AmbiguousNameError with the candidates,
        UnknownVersionError and UnknownLabelError with what there is, and TypeError for a name that is not a string.
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
        return Items(self)

    def values(self) -> ValuesView[ModuleInfo]:
        """A view: the modules in registration order. It leaves out a module unregistered during the iteration."""
        return Values(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._execute(Plan()))

    def _exact(self, name: object) -> ModuleInfo | None:
        if not isinstance(name, str):
            return None
        try:  # as a dict: what equals a key is found
            info = self._fetch(plain_name(name))
        except (AmbiguousNameError, UnknownVersionError, UnknownLabelError):  # so it is not a full name
            return None
        return info if info is not None and info.name == name else None
