"""What a killed writer leaves in the registry's folder: files that were to be renamed, and an upgrade's folder.

The next writer removes them.
"""

from __future__ import annotations

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.health_file import HEALTH_FILE
from dspy_registry.registry_store.layout import LOCK_FILE, REVISION_FILE
from dspy_registry.registry_store.lease_file import LEASES_FILE

INCOMING: Final = ".restoring"
"""Where `restore` copies a backup's data file to."""

BUILDING: Final = ".upgrading"
"""Where `upgrade` builds the new data file: a folder."""

_OF_WRITERS: Final = re.compile(
    rf"\.(?:{re.escape(REVISION_FILE)}|{re.escape(LOCK_FILE)}|{re.escape(HEALTH_FILE)})\.\d+|{re.escape(INCOMING)}"
)
_OF_WORKERS: Final = re.compile(rf"\.{re.escape(LEASES_FILE)}\.\d+\.\d+")
_CERTAINLY_LEFT: Final = 60.0
"""Seconds. A worker needs such a file for less than a millisecond, and holds no lock meanwhile."""


def remove_leftovers(folder: Path) -> None:
    """Call it with the writer lock: then no writer that is alive has such a file."""
    now = time.time()
    for path in folder.iterdir():
        is_left = _OF_WRITERS.fullmatch(path.name) is not None
        with suppress(OSError):
            if path.name == BUILDING and not path.is_symlink():
                shutil.rmtree(path)
            elif is_left or (_OF_WORKERS.fullmatch(path.name) and now - path.lstat().st_mtime > _CERTAINLY_LEFT):
                path.unlink()
