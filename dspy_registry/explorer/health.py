"""What is not healthy on this host, for pages and events."""

from __future__ import annotations

from pathlib import Path

from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.health_file import HealthEntry, HealthFile, entries


class Health:
    """The host's circuits that are not closed, as the shared file has them now. Nothing is there without the file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: HealthFile | None = None

    def read(self) -> list[HealthEntry]:
        """By name and version; []: all is well, or nothing is known."""
        try:
            if self._file is None or not self._file.is_current():
                self._file = HealthFile(self._folder)
            return entries(self._file.read()[1])
        except RegistryError:
            self._file = None
            return []
