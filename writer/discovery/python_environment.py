"""What is installed in a Python environment, seen from outside: by the folders that it imports from."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import DiscoveryError

INSTALLED: Final = (".dist-info", ".egg-info", ".egg-link", ".pth")
"""The ends of names that an installer puts beside a package."""

_TELL_PATH: Final = "import json, sys; print(json.dumps([p for p in sys.path if p]))"

Installed = frozenset[tuple[str, int, int]]
"""Path, inode and time of change of each file with such a name, and of the interpreter."""


def import_folders(python: str, timeout: float) -> tuple[str, ...]:
    """The existing folders that this interpreter imports from. Raises DiscoveryError."""
    try:
        told = subprocess.run(
            [python, "-c", _TELL_PATH], stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=True
        )
        listed = json.loads(told.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        raise DiscoveryError(
            f"{python!r} does not run as a Python interpreter: {error}.",
            remedy="Name the workers' Python interpreter (--python).",
        ) from error
    folders = [Path(folder).absolute() for folder in listed if isinstance(folder, str)]
    return tuple(sorted({str(folder) for folder in folders if folder.is_dir()}))


def installed(python: str, folders: tuple[str, ...]) -> Installed:
    """What is installed in these folders now."""
    found = {_identified(Path(python))}
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                found |= {_identified(Path(entry.path)) for entry in entries if entry.name.endswith(INSTALLED)}
        except OSError:
            continue  # the folder is gone
    return frozenset(found)


def _identified(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_ino, status.st_mtime_ns
