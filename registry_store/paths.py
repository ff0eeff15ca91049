"""Where the files of a registry are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import InvalidArgumentError, NoHomeError
from dspy_registry.registry_store.layout import SOCKET_FILE

ENVIRONMENT_VARIABLE: Final = "DSPY_REGISTRY"
LONGEST_SOCKET_PATH: Final = 107  # bytes: sun_path of Linux without its final zero


FileIdentity = tuple[int, int]
"""Device and inode."""


def registry_path(path: str | os.PathLike[str] | None = None) -> Path:
    """The registry's folder, absolute.

    `path` if given; else $DSPY_REGISTRY unless it is empty; else `dspy-registry` in the user's data directory
    ($XDG_DATA_HOME, else ~/.local/share). Raises InvalidArgumentError for an empty path, which would be the folder
    that the process happens to be in, and for one that is not UTF-8. Raises NoHomeError where the folder is in a home
    directory that is not known.
    """
    if path is not None and os.fspath(path) == "":
        raise InvalidArgumentError(
            "the registry's path is empty.", remedy=f"Name its folder, or leave it out to use ${ENVIRONMENT_VARIABLE}."
        )
    chosen = path if path is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    if chosen is not None:
        return _storable(_expanded(Path(chosen)).absolute())
    data = os.environ.get("XDG_DATA_HOME")
    home = Path(data) if data else _expanded(Path("~", ".local", "share"))
    return _storable(home / "dspy-registry")


def _storable(path: Path) -> Path:
    """The path, which LMDB takes as UTF-8. Raises InvalidArgumentError."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise InvalidArgumentError(
            f"{shown} is not UTF-8.", remedy="Put the registry in a folder whose path is."
        ) from error
    return path


def _expanded(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError as error:  # no $HOME and no entry in the password file, or a ~user that has none
        raise NoHomeError(
            f"{path} is in a home directory that is not known on this host.",
            remedy=f"Name the registry's folder by a path without ~, for example in ${ENVIRONMENT_VARIABLE}.",
        ) from error


def file_identity(path: str | Path) -> FileIdentity | None:
    """Which file a path names now; None when the file is missing or hidden."""
    try:
        status = os.stat(path)  # noqa: PTH116 - half the time of Path.stat, at every opening
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
