"""Where the files of a registry are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.layout import SOCKET_FILE

ENVIRONMENT_VARIABLE: Final = "DSPY_REGISTRY"
LONGEST_SOCKET_PATH: Final = 107  # bytes: sun_path of Linux without its final zero


FileIdentity = tuple[int, int]
"""Device and inode."""


def registry_path(path: str | os.PathLike[str] | None = None) -> Path:
    """The registry's folder, absolute.

    It is `path` if given; else $DSPY_REGISTRY unless that is empty; else `dspy-registry` in the user's data directory
    ($XDG_DATA_HOME, else ~/.local/share). Raises InvalidArgumentError for an empty path, which would mean the
    process's working directory.
    """
    if path is not None and os.fspath(path) == "":
        raise InvalidArgumentError(
            "the registry's path is empty.", remedy=f"Name its folder, or leave it out to use ${ENVIRONMENT_VARIABLE}."
        )
    chosen = path if path is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    if chosen is not None:
        return Path(chosen).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    home = Path(data) if data else Path.home() / ".local" / "share"
    return home / "dspy-registry"


def file_identity(path: Path) -> FileIdentity | None:
    """The identity of the file at this path; None: there is no file, or it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def socket_path(folder: Path) -> Path:
    """The path of the writer daemon's socket. Raises InvalidArgumentError if the path is too long for a socket."""
    path = folder / SOCKET_FILE
    if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
        raise InvalidArgumentError(
            f"{path} is longer than the {LONGEST_SOCKET_PATH} bytes a socket's path may have.",
            remedy="Put the registry in a folder with a shorter path.",
        )
    return path
