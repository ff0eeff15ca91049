"""Bringing the registry in line with what discovery declares now: only differences are staged."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dspy_registry.registry_store.arguments import wrong_type
from dspy_registry.registry_store.errors import InvalidModuleError
from dspy_registry.registry_store.layers import DISCOVERED, Layer
from dspy_registry.registry_store.records import to_plain
from dspy_registry.writer.draft import Draft

if TYPE_CHECKING:
    from dspy_registry.writer.discovery.report import DiscoveryReport


@dataclass
class Outcome:
    """What a reconciliation did. `revision` is the one in which it is visible."""

    revision: int = 0
    declared: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def check_report(report: object) -> None:
    """Raises WrongTypeError for what is no DiscoveryReport. Its file is not imported: it is not needed elsewhere."""
    if not callable(getattr(report, "would_have_found", None)):
        raise wrong_type("report", "a DiscoveryReport", report)


def apply_discovery(draft: Draft, report: DiscoveryReport, outcome: Outcome) -> None:
    """Stage the modules of a report as the lowest layer, and withdraw modules that are gone from their packages.

    Modules of a package that could not be looked at stay.
    """
    found = {info.name: Layer(DISCOVERED, _fields(to_plain(info))) for info in report.modules}
    current = dict(draft.catalog.layers_from(DISCOVERED))
    for name, layer in found.items():
        if current.get(name) != layer:
            _declare(draft, name, layer, outcome)
    for name, layer in current.items():
        if name not in found and report.would_have_found(name, layer.fields.get("metadata", {})):
            draft.withdraw(name, DISCOVERED)
            outcome.withdrawn.append(name)


def _declare(draft: Draft, name: str, layer: Layer, outcome: Outcome) -> None:
    try:
        draft.declare(name, layer)
    except InvalidModuleError as error:
        outcome.refused.extend(error.problems)
    else:
        outcome.declared.append(name)


def _fields(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key != "name"}
