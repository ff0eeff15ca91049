"""Which targets a call may choose, and by which name the registry is asked for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

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


class Wanted:
    """The targets among which one call chooses. `label` and `key` are those of `Registry.route`.

    A service outlives the module of one target: what is not there any more is left out, as long as another is left.
    Raises InvalidArgumentError for a name without a target, TypeError.
    """

    def __init__(
        self,
        registry: Registry,
        targets: Mapping[str, Any],
        names: str | Iterable[str] | None,
        label: str | None,
        key: str | None,
    ) -> None:
        self._is_plain = label is None and key is None
        if not self._is_plain:
            check_text("label", label)
            check_text("key", key)
        self._registry = registry
        self._targets = targets
        self._label = label
        self._key = key
        self._asked: dict[str, str] | None = None  # the target by the name that is asked for; None: each by its own
        if names is not None:
            self._asked = dict(self._asked_and_target(name) for name in names_of("names", names))
        self._chosen = self._asked

    def target_of(self, asked: str) -> str:
        """The name of the target, by the name that the last route was asked for."""
        return asked if self._chosen is None else self._chosen[asked]

    def route(self, ask: Callable[[tuple[str, ...]], Route]) -> Route:
        """The route among them. `ask` gives it for `names`. Raises what `ask` raises."""
        if not self._is_plain:
            self._chosen = self._versions()
        wanted: Iterable[str] = self._targets if self._chosen is None else self._chosen
        names = tuple(wanted)
        try:
            return ask(names)
        except GONE:
            known = {name: self.target_of(name) for name in names if self._resolved(name) is not None}
            if not known or len(known) == len(names):
                raise
            self._chosen = known
            return ask(tuple(known))

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
