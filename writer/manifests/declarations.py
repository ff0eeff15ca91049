"""What each manifest declares, and what is wrong with it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.changes import Implications
from dspy_registry.registry_store.layers import Default
from dspy_registry.registry_store.policy import Policy
from dspy_registry.writer.manifests.lines import Path, shown_path

ERRORS_SHOWN: Final = 100
"""Errors shown of one file. One more says how many there are beyond."""

ERRORS_SOUGHT: Final = 1_000
"""Errors that are looked for in one file: a million take no longer."""


class ManifestError(msgspec.Struct, frozen=True, order=True):
    """What is wrong, and where.

    `file` is relative to the manifests' folder, and empty for the folder itself. `line` counts from 1; 0: not known.
    `field` is like modules[0].category, and empty for a whole file.
    """

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.field, self.message) if part)


def shown(errors: Iterable[ManifestError]) -> tuple[ManifestError, ...]:
    """Each error once, and at most ERRORS_SHOWN of a file."""
    by_file: dict[str, list[ManifestError]] = defaultdict(list)
    for error in dict.fromkeys(errors):
        by_file[error.file].append(error)
    found: list[ManifestError] = []
    for file, told in by_file.items():
        found += told[:ERRORS_SHOWN]
        if len(told) > ERRORS_SHOWN:
            at_least = "at least " if len(told) >= ERRORS_SOUGHT else ""
            found.append(ManifestError(file, 0, "", f"and {at_least}{len(told) - ERRORS_SHOWN} more errors"))
    return tuple(found)


class DeclaredLabel(msgspec.Struct, frozen=True):
    """A label of a manifest: the full name of its module, and how many buckets each version has."""

    name: str
    label: str
    versions: dict[int, int]


class Declarations(msgspec.Struct, frozen=True):
    """What one file declares: by module, alias, implication, label and pattern; defaults in their order."""

    modules: dict[str, dict[str, Any]] = {}
    aliases: dict[str, str] = {}
    implications: Implications = {}
    defaults: tuple[Default, ...] = ()
    labels: tuple[DeclaredLabel, ...] = ()
    policies: dict[str, Policy] = {}


def _nowhere(path: Path) -> int:
    return 0


class LoadedFile(msgspec.Struct, frozen=True):
    """A file as it was last read: what it declares, or None and its errors.

    `places` has the place of each module in the file, and `line_of` gives the line of a place.
    """

    file: str
    declared: Declarations | None
    errors: tuple[ManifestError, ...] = ()
    places: dict[str, Path] = {}
    line_of: Callable[[Path], int] = _nowhere

    def error(self, path: Path, message: str) -> ManifestError:
        """An error that shows only together with other files or with the registry."""
        return ManifestError(self.file, self.line_of(path), shown_path(path), message)


def unreadable(file: str, message: str, line: int = 0, path: Path = ()) -> LoadedFile:
    """A file of which only an error is known."""
    return LoadedFile(file, None, (ManifestError(file, line, shown_path(path), message),))
