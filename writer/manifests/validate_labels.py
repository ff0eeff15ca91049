"""The labels of one manifest: what is wrong with them, and what they declare. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dspy_registry.registry_store import buckets
from dspy_registry.registry_store.labels import as_weights, label_problems, versions_problems
from dspy_registry.registry_store.validation import name_problems
from dspy_registry.writer.manifests.declarations import DeclaredLabel
from dspy_registry.writer.manifests.lines import Path


def label_entry_problems(path: Path, entry: Mapping[str, Any]) -> Iterator[tuple[Path, str]]:
    """(place, message) of each error of the label at this path. Unknown keys are told elsewhere."""
    for key in ("module", "label", "versions"):
        if key not in entry:
            yield path, f"{key} is missing"
    for problem in name_problems(entry.get("module", "any")):
        yield (*path, "module"), problem.removeprefix("name: ")
    for problem in label_problems(entry.get("label", "any")):
        yield (*path, "label"), problem
    for problem in versions_problems(_numbered(entry.get("versions", 1))):
        yield (*path, "versions"), problem


def declared_labels(entries: Iterable[Mapping[str, Any]]) -> tuple[DeclaredLabel, ...]:
    """What sound entries declare."""
    found = ((entry["module"], entry["label"], as_weights(_numbered(entry["versions"]))) for entry in entries)
    return tuple(DeclaredLabel(name, label, buckets.targets(weights)) for name, label, weights in found)


def with_text_keys(entries: Iterable[Any]) -> list[Any]:
    """The entries as JSON and TOML have them: YAML may have numbers as keys."""
    return [
        {**entry, "versions": {str(version): weight for version, weight in entry["versions"].items()}}
        if isinstance(entry, dict) and isinstance(entry.get("versions"), dict)
        else entry
        for entry in entries
    ]


def _numbered(versions: Any) -> Any:
    """Weights by number: JSON and TOML have texts as keys."""
    if not isinstance(versions, dict):
        return versions
    return {_number(version): weight for version, weight in versions.items()}


def _number(version: Any) -> Any:
    is_number = isinstance(version, str) and version.isascii() and version.isdigit() and len(version) <= 10
    return int(version) if is_number else version
