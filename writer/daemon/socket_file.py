"""The daemon's socket in the registry's folder. Who may speak to it: see `roles`."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import InvalidArgumentError, StoreError, StorePermissionError
from dspy_registry.registry_store.own_files import change_owner_and_mode

_BACKLOG: Final = 1024


def bind(path: Path, group: int | None) -> socket.socket:
    """A listening socket that only this user, root and the group can open. The caller holds the writer lock.

    Raises StoreError when another file or a live socket is there, StorePermissionError.
    """
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        # Before bind: the file never exists with the wider mode that the umask would leave.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        if group is not None:
            change_owner_and_mode(path, group, 0o660)
        listener.listen(_BACKLOG)
    except StoreError:
        listener.close()
        raise
    except OSError as error:
        listener.close()
        raise StorePermissionError(f"{path} cannot be created: {error.strerror}.") from error
    return listener


def _remove_stale(path: Path) -> None:
    """Unlink the socket of a killed daemon. Raises StoreError for another kind of file and for a live socket."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise StoreError(f"{path} is in the way: it is not a socket.", remedy="Move it away.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        code = probe.connect_ex(os.fspath(path))
    if code not in (errno.ECONNREFUSED, errno.ENOENT):
        raise StoreError(f"another process answers on {path}.", remedy="Stop it, or use another folder.")
    path.unlink(missing_ok=True)


def unlink(path: Path) -> None:
    """Remove the daemon's own socket, so that clients learn at once that it is gone."""
    with contextlib.suppress(OSError):
        path.unlink()


def group_ids(*groups: str | int | None) -> tuple[int | None, ...]:
    """The numbers of groups given by name or number. None stays None. Raises InvalidArgumentError: it names each."""
    found: list[int | None] = []
    unknown: list[str] = []
    for group in groups:
        try:
            found.append(grp.getgrnam(group).gr_gid if isinstance(group, str) else group)
        except KeyError:
            unknown.append(f"group {group!r}")
    if unknown:
        raise InvalidArgumentError(
            f"there is no {' and no '.join(unknown)} on this host.",
            remedy="Name another group, or make it: `groupadd --system NAME`.",
        )
    return tuple(found)
