"""The files an open registry stands on. Whoever removes or replaces them makes the daemon's writes vanish."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.errors import StoreError
from dspy_registry.registry_store.paths import file_identity

# Looked at, never opened: closing lock.mdb anywhere in a process drops the locks that LMDB holds on it.
_FILES: Final = (layout.DATA_FILE, layout.REVISION_FILE, layout.LEASE_FILE, layout.LOCK_FILE)


class FileGuard:
    """The files of a folder as they are now. `check` says whether they still are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._identities = {name: file_identity(folder / name) for name in _FILES}

    def __repr__(self) -> str:
        return f"FileGuard({str(self._folder)!r})"

    def check(self) -> None:
        """Raises StoreError naming a file that is gone or another."""
        for name, identity in self._identities.items():
            if file_identity(self._folder / name) != identity:
                raise StoreError(
                    f"{self._folder / name} was removed or replaced under the writer, so that what it writes is lost.",
                    remedy="Stop the writer before touching the registry's files.",
                )
