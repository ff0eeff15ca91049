"""What a call asks the registry for: which targets it may choose, by which name each, and within which time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from msgspec import Struct

from dspy_registry.readers.asked import names_of
from dspy_registry.readers.programs import Programs
from dspy_registry.readers.registry import Registry
from dspy_registry.readers.route import Candidate, Route
from dspy_registry.registry_store.arguments import check_text
from dspy_registry.registry_store.errors import (
    InvalidArgumentError,
    NoProgramError,
    ProgramRefusedError,
    UnknownLabelError,
    UnknownModuleError,
    UnknownVersionError,
)
from dspy_registry.registry_store.selection import Resolved
from dspy_registry.router.course import Refused

GONE: Final = (UnknownModuleError, UnknownVersionError, UnknownLabelError)
"""What the registry says of a target whose module, version or label is not there any more."""
_DEADLINE_STEP_MS: Final = 50
"""Deadlines of routes are rounded up to it, so that decisions made within a call are kept too."""


class Wanted(Struct):
    """The targets among which one call chooses: all of them, if nothing narrows them.

    `asked` are the other arguments of `Registry.route`. `deadline_ms` is for the whole call; None: it has none.
    A service outlives the module of one target: what is not there any more is left out, as long as another is left.
    """

    _registry: Registry
    _targets: Mapping[str, Any]
    _asked: dict[str, Any]
    _deadline_ms: float | None = None
    _label: str | None = None
    _key: str | None = None
    _named: dict[str, str] | None = None
    """The target by the name that is asked for; None: each by its own."""
    _chosen: dict[str, str] | None = None
    """`_named`, as the last route needed it."""

    def narrow(self, names: str | Iterable[str] | None, label: str | None, key: str | None) -> None:
        """Choose as these arguments of `Registry.route` say. Raises InvalidArgumentError for a name without a target.

        Raises TypeError.
        """
        check_text("label", label)
        check_text("key", key)
        self._label, self._key = label, key
        if names is not None:
            self._named = dict(self._asked_and_target(name) for name in names_of("names", names))
        self._chosen = self._named

    def target(self, candidate: Candidate) -> tuple[Callable[..., Any], int] | Refused:
        """What to call for a candidate of the last route, and which version it is.

        `Programs` have a program for each version, or an older one meanwhile. A program that does not fit this process
        says nothing about the module, so others are tried without a report.
        """
        asked = candidate.asked
        if type(self._targets) is dict or not isinstance(self._targets, Programs):
            return self._targets[asked if self._chosen is None else self._chosen[asked]], candidate.version
        try:
            return self._targets.serving(asked)
        except (ProgramRefusedError, NoProgramError) as error:
            return Refused(error)

    def route(self, left_ms: float | None) -> Route:
        """The route among them, for the milliseconds that are left. Raises what `Registry.route` raises."""
        deadline_ms = self._deadline_ms
        if deadline_ms is not None and left_ms is not None:
            deadline_ms = min(deadline_ms, _rounded_up(left_ms))
        if self._label is not None or self._key is not None:
            self._chosen = self._versions()
        names = tuple(self._targets if self._chosen is None else self._chosen)
        try:
            return self._registry.route(names=names, deadline_ms=deadline_ms, **self._asked)
        except GONE:
            asked = zip(names, names, strict=True) if self._chosen is None else self._chosen.items()
            known = {name: target for name, target in asked if self._resolved(name) is not None}
            if not known or len(known) == len(names):
                raise
            self._chosen = known
            return self._registry.route(names=tuple(known), deadline_ms=deadline_ms, **self._asked)

    def _versions(self) -> dict[str, str]:
        """Each by the version that the label or the key chooses: `name@version`."""
        found: dict[str, str] = {}
        last: Exception | None = None
        asked = zip(self._targets, self._targets, strict=True) if self._named is None else self._named.items()
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


def _rounded_up(milliseconds: float) -> float:
    if milliseconds == math.inf:
        return milliseconds
    return math.ceil(milliseconds / _DEADLINE_STEP_MS) * _DEADLINE_STEP_MS
