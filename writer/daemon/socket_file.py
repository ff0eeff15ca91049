"""The daemon's socket in the registry's folder, and who may speak to it."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import socket
import stat
import struct
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import InvalidArgumentError, StoreError, StorePermissionError
from dspy_registry.registry_store.own_files import change_owner_and_mode

_BACKLOG: Final = 1024
_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid
_SO_PEERGROUPS: Final = 59
_MOST_GROUPS: Final = 256  # as many as Python lets getsockopt return


def bind(path: Path, group: int | None) -> socket.socket:
    """A listening socket that only this user, root and the group can open. The caller holds the lease.

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


def group_id(group: str | int | None) -> int | None:
    """The number of a group given by name or number. None stays None. Raises InvalidArgumentError."""
    if group is None or isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError as error:
        raise InvalidArgumentError(f"there is no group {group!r} on this host.") from error


def refusal(peer: socket.socket, group: int | None) -> StorePermissionError | None:
    """Why the process at the other end may not change the registry. None: it may.

    Its uid decides and, where a group was named, its groups. Its pid does not: from another namespace it is 0. The
    overflow uid does not either: it stands for all users that are unknown here.
    """
    _, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid == 0 or (uid == os.geteuid() and uid != _overflow("uid")):
        return None
    if group is not None and group != _overflow("gid") and group in (gid, *_groups(peer)):
        return None
    return StorePermissionError(
        f"user {uid} may not change this registry.",
        remedy="Send changes as the daemon's user, or let the daemon admit a group (`serve --group NAME`).",
    )


def _groups(peer: socket.socket) -> tuple[int, ...]:
    """The peer's supplementary groups."""
    try:
        groups = peer.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * _MOST_GROUPS)
    except OSError:
        return ()
    return struct.unpack(f"={len(groups) // 4}I", groups)


def _overflow(kind: str) -> int:
    """The id that stands for all ids unknown in this namespace."""
    try:
        return int(Path(f"/proc/sys/kernel/overflow{kind}").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 65534
