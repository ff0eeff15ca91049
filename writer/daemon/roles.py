"""What each process on the host may do to a registry: one table, by the kernel's word on who is at the other end.

| role   | who                                     | may                                                              |
| ------ | --------------------------------------- | ---------------------------------------------------------------- |
| read   | who may open the registry's files       | look up, take snapshots, watch: files alone, without the daemon  |
| report | members of `--report-group`             | also report calls, and ask the daemon for its status             |
| change | root, the daemon's user, `--group`      | also register, unregister, set and remove whatever there is      |
"""

from __future__ import annotations

import enum
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import StorePermissionError
from dspy_registry.registry_store.protocol import ReadStatus, ReportOutcomes, ReportUsage
from dspy_registry.registry_store.records import By

_UCRED: Final = struct.Struct("=iII")  # pid, uid, gid
_SO_PEERGROUPS: Final = 59
_MOST_GROUPS: Final = 256  # as many as Python lets getsockopt return


class Role(enum.IntEnum):
    """Each role includes those before it."""

    READ = 0
    REPORT = 1
    CHANGE = 2


NEEDED: Final[dict[type, Role]] = {
    ReportUsage: Role.REPORT,
    ReportOutcomes: Role.REPORT,
    ReadStatus: Role.REPORT,
}
"""The role that a message needs. All others change the registry."""


@dataclass(frozen=True)
class Groups:
    """The Unix groups that a daemon admits, by number; None: none."""

    change: int | None = None
    report: int | None = None

    @property
    def of_files(self) -> int | None:
        """The group that the socket and new files belong to: the wider one. Members of the other are in it too."""
        return self.change if self.report is None else self.report


def role_of(peer: socket.socket, groups: Groups) -> Role:
    """The role of the process at the other end.

    Its uid decides and, where groups were named, its groups. Its pid does not: from another namespace it is 0. The
    overflow ids do not either: they stand for all ids that are unknown here.
    """
    uid, gid = _user_and_group(peer)
    if uid == 0 or (uid == os.geteuid() and uid != _overflow("uid")):
        return Role.CHANGE
    member = {gid, *_supplementary(peer)} - {_overflow("gid")}
    if groups.change in member:
        return Role.CHANGE
    return Role.REPORT if groups.report in member else Role.READ


def refusal(peer: socket.socket, role: Role) -> StorePermissionError | None:
    """Why the process at the other end may not speak to the daemon at all. None: it may, as far as its role goes."""
    if role > Role.READ:
        return None
    return StorePermissionError(
        f"user {_user_and_group(peer)[0]} may not change this registry.",
        remedy="Send changes as the daemon's user, or let the daemon admit a group (`serve --group NAME`).",
    )


def overstep(message: object, role: Role) -> StorePermissionError | None:
    """Why a process of this role may not send a message. None: it may."""
    if role >= NEEDED.get(type(message), Role.CHANGE):
        return None
    return StorePermissionError(
        "this process may report calls to this registry, and may not change it.",
        remedy="Send changes as the daemon's user, or as a member of the group that may (`serve --group NAME`).",
    )


def process_of(peer: socket.socket) -> By | None:
    """The user id and the process id (0: of another namespace) at the other end. None: the kernel does not tell."""
    try:
        pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    except OSError:
        return None
    return uid, pid


def _user_and_group(peer: socket.socket) -> tuple[int, int]:
    _, uid, gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid, gid


def _supplementary(peer: socket.socket) -> tuple[int, ...]:
    """The peer's supplementary groups when it connected."""
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
