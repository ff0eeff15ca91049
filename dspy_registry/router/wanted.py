"""Which targets a call may choose, and by which name the registry is asked for each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from dspy_registry.readers.asked import names_of
from dspy_registry.readers.registry import Registry
from dspy_registry.readers.route import Route
from dspy_registry.registry_store.arguments import check_text
from dspy_registry.registry_store.errors import (
    InvalidArgumentError,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)
from dspy_registry.registry_store.selection import Resolved

GONE: Final = (UnknownModuleError, UnknownVersionError, UnknownLabelError)
"""What the registry says of a target whose module, version or label is not there any more."""


class Wanted(Struct):
    """The targets among which one call chooses: all of them, if nothing narrows them.

    A service outlives the module of one target: what is not there any more is left out, as long as another is left.
    """

    _registry: Registry
    _targets: Mapping[str, Any]
    _label: str | None = None
    _key: str | None = None
    _asked: dict[str, str] | None = None
    """The target by the name that is asked for; None: each by its own."""
    _chosen: dict[str, str] | None = None
    """`_asked`, as the last route needed it."""

    def narrow(self, names: str | Iterable[str] | None, label: str | None, key: str | None) -> None:
        """Choose as these arguments of `Registry.route` say. Raises InvalidArgumentError for a name without a target.

        Raises TypeError.
        """
        check_text("label", label)
        check_text("key", key)
        self._label, self._key = label, key
        if names is not None:
            self._asked = dict(self._asked_and_target(name) for name in names_of("names", names))
        self._chosen = self._asked

    def target_of(self, asked: str) -> str:
        """The name of the target, by the name that the last route was asked for."""
        return asked if self._chosen is None else self._chosen[asked]

    def route(self, capabilities: str | Iterable[str] | None, **asked: Any) -> Route:
        """The route among them, for these arguments of `Registry.route`. Raises what that raises."""
        if self._label is not None or self._key is not None:
            self._chosen = self._versions()
        names = tuple(self._targets if self._chosen is None else self._chosen)
        try:
            return self._registry.route(capabilities, names=names, **asked)
        except GONE:
            known = {name: self.target_of(name) for name in names if self._resolved(name) is not None}
            if not known or len(known) == len(names):
                raise
            self._chosen = known
            return self._registry.route(capabilities, names=tuple(known), **asked)

    def _versions(self) -> dict[str, str]:
        """Each by the version that the label or the key chooses: `name@version`."""
        found: dict[str, str] = {}
        last: Exception | None = None
        asked = zip(self._targets, self._targets, strict=True) if self._asked is None else self._asked.items()
        for name, target in asked:
            labelled = name if self._label is None or "@" in name else f"{name}@{self._label}"
            try:
                found.setdefault(str(self._registry.resolve(labelled, key=self._key)), target)
            except GONE as error:
                last = error
        if not found and last is not None:
            raise last
        return found

    def _asked_and_target(self, name: str) -> tuple[str, str]:
        """What to ask for, and the target: of the same name, else of the same version, else of the same module."""
        if name in self._targets:
            return name, name
        found = self._resolved(name)
        meant = {} if found is None else {target: self._resolved(target) for target in self._targets}
        of_module = {
            target: each.version for target, each in meant.items() if each and found and each.name == found.name
        }
        if "@" not in name:
            fitting = [(target, target) for target in of_module]
        else:
            version = 0 if found is None else found.version
            fitting = [(target, target) for target, each in of_module.items() if "@" in target and each == version]
            fitting += [(name, target) for target in of_module if "@" not in target]
        if not fitting:
            raise InvalidArgumentError(
                f"{name!r} is the name of no target.", remedy=f"Targets: {', '.join(self._targets)}."
            )
        return fitting[0]

    def _resolved(self, name: str) -> Resolved | None:
        """The version that a name means; None: there is none any more."""
        try:
            return self._registry.resolve(name)
        except GONE:
            return None
