"""Who may open the files that a writer creates: its user, and a group that was named or that the umask allows.

Others never may. A user who can read `writer.lock` or `lock.mdb` can lock it, and so prevent the registry from opening.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import StoreError, StorePermissionError
from dspy_registry.registry_store.own_files import change_owner_and_mode

FOLDER: Final = 0o750
DATA: Final = 0o640
LOCK: Final = 0o660  # readers write their slots
WRITER_LOCK: Final = 0o640  # clients check whether there is a writer

_GROUP_MAY_WRITE: Final = 0o020
_OWNER: Final = 0o700


def mode_for_umask(mode: int) -> int:
    """One of the modes above. If the umask forbids the group to write, the group gets no access at all."""
    return mode & _OWNER if _umask() & _GROUP_MAY_WRITE else mode


def admit(path: Path, group: int | None, mode: int) -> None:
    """Give what was just created to a group, if one was named. Raises StorePermissionError, StoreError for a link."""
    if group is None:
        return
    try:
        change_owner_and_mode(path, group, mode)
    except StoreError:
        raise
    except OSError as error:
        raise StorePermissionError(
            f"{path} cannot be given to group {group}: {error.strerror}.",
            remedy="Run the writer as root or as a member of that group.",
        ) from error


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
