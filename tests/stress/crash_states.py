"""From what was recorded, the disks that a power loss may leave.

What was synced is there. Of what was not, any subset is: of writes, whole or by sectors of 512 bytes; of names, in each
folder those up to some point, in order, as a journal keeps them. A write through a descriptor that syncs is there when
it has returned.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tests.stress.recording import MARKS, Event

SECTOR = 512
_DATA_IDENTITY_AT = 160  # in a revision file: device and inode of its data file
_IDENTITY = struct.Struct("=QQ")
_NAN = struct.pack("=d", float("nan"))

ALL, NOTHING, SUBSET, TORN, NAMES = "all", "nothing", "subset", "torn", "names"
MODES = (ALL, NOTHING, SUBSET, TORN, NAMES)


class Pending(NamedTuple):
    """A change of a file that is not synced. `data` None: its size becomes `at`."""

    at: int
    data: bytes | None


class File(NamedTuple):
    synced: bytes = b""
    pending: tuple[Pending, ...] = ()


def folder_of(path: str) -> str:
    """The folder that a relative path lies in, "" for the topmost."""
    return path.rpartition("/")[0]


class NameChange(NamedTuple):
    """`inode` None: the name is gone; -1: it is a folder. `source` is the name that a rename takes away."""

    path: str
    inode: int | None
    source: str = ""

    @property
    def folders(self) -> set[str]:
        return {folder_of(path) for path in (self.path, self.source) if path}


class Point(NamedTuple):
    """What is on the disk, and what is on its way there, at one moment; and the last step that was acknowledged.

    `identities`: device and inode that each file had. All points of a recording share it.
    """

    files: dict[int, File]
    names: dict[str, int]  # synced; -1: a folder
    changes: tuple[NameChange, ...]
    acknowledged: int
    identities: dict[int, tuple[int, int]]


def points(events: Iterable[Event], before: dict[str, bytes | None]) -> list[Point]:
    """The moments of a recording, each before the next event is done. `before` is what the folder held, all synced."""
    disk = _Disk(before)
    found = [disk.point()]
    for event in events:
        disk.take(event)
        found.append(disk.point())
        disk.settle()
    return found


class _Disk:
    def __init__(self, before: dict[str, bytes | None]) -> None:
        self._files: dict[int, File] = {}
        self._names: dict[str, int] = {"": -1}
        self._changes: tuple[NameChange, ...] = ()
        self._now: dict[str, int] = {"": -1}  # what the running system sees
        self._acknowledged = 0
        self._identities: dict[int, tuple[int, int]] = {}
        self._durable = -1
        for path, content in before.items():
            inode = -1 if content is None else self._new(File(content))
            self._names[path] = self._now[path] = inode

    def _new(self, file: File) -> int:
        inode = len(self._files)
        self._files[inode] = file
        return inode

    def point(self) -> Point:
        return Point(dict(self._files), dict(self._names), self._changes, self._acknowledged, self._identities)

    def settle(self) -> None:
        """A write that syncs has returned."""
        if self._durable >= 0:
            file = self._files[self._durable]
            self._files[self._durable] = file._replace(
                synced=applied(file.synced, file.pending[-1:]), pending=file.pending[:-1]
            )
            self._durable = -1

    def take(self, event: Event) -> None:
        if event.kind == "mark":
            self._mark(event)
        elif event.kind in ("create", "mkdir"):
            inode = -1 if event.kind == "mkdir" else self._new(File())
            self._change(NameChange(event.path, inode))
        elif event.kind == "rename":
            if event.to.endswith("revision") and event.to in self._now:  # it is retired, through its map
                self._add(self._now[event.to], Pending(0, _NAN))
            self._change(NameChange(event.to, self._now[event.path], event.path))
        elif event.kind in ("unlink", "rmdir"):
            self._change(NameChange(event.path, None))
        elif event.kind == "sync":
            self._sync(event.path)
        elif event.path in self._now and self._now[event.path] >= 0:
            self._write(self._now[event.path], event)

    def _write(self, inode: int, event: Event) -> None:
        if event.kind == "grow":
            size = len(applied(self._files[inode].synced, self._files[inode].pending))
            if event.at > size:
                self._add(inode, Pending(event.at, None))
            return
        self._add(inode, Pending(event.at, event.data if event.kind == "write" else None))
        if event.is_durable:
            self._durable = inode

    def _mark(self, event: Event) -> None:
        told = event.told
        for path, identity in told["inodes"].items():
            if self._now.get(path, -1) >= 0:
                self._identities[self._now[path]] = tuple(identity)
        if "acknowledged" in told:
            self._acknowledged = told["acknowledged"]
        for at, data in told.get("stores", ()):
            self._add(self._now[told["path"]], Pending(at, bytes.fromhex(data)))

    def _add(self, inode: int, change: Pending) -> None:
        file = self._files[inode]
        self._files[inode] = file._replace(pending=(*file.pending, change))

    def _change(self, change: NameChange) -> None:
        self._changes = (*self._changes, change)
        _rename(self._now, change)

    def _sync(self, path: str) -> None:
        inode = self._now.get(path)
        if inode is None:
            return
        if inode >= 0:
            file = self._files[inode]
            self._files[inode] = file._replace(synced=applied(file.synced, file.pending), pending=())
            return
        kept = []
        for change in self._changes:
            if path in change.folders:
                _rename(self._names, change)
            else:
                kept.append(change)
        self._changes = tuple(kept)


def _rename(names: dict[str, int], change: NameChange) -> None:
    if change.source:
        for path in [path for path in names if path.startswith(f"{change.source}/")]:
            names[change.path + path[len(change.source) :]] = names.pop(path)
        names.pop(change.source, None)
    if change.inode is None:
        names.pop(change.path, None)
    else:
        names[change.path] = change.inode


def applied(content: bytes, changes: Iterable[Pending]) -> bytes:
    """The bytes after these changes, in order."""
    changed = bytearray(content)
    for at, data in changes:
        if data is None:
            del changed[at:]
            changed.extend(bytes(at - len(changed)))
        else:
            if at > len(changed):
                changed.extend(bytes(at - len(changed)))
            changed[at : at + len(data)] = data
    return bytes(changed)


# One disk out of many


def build(point: Point, mode: str, chance: random.Random, room: Path) -> None:
    """Lay out in `room` one of the disks that a power loss at this moment may leave."""
    names = dict(point.names)
    for change in _surviving_names(point, mode, chance):
        _rename(names, change)
    for path, inode in sorted(names.items()):
        if inode < 0 and _has_folders(path, names):
            (room / path).mkdir(exist_ok=True)
    laid: dict[tuple[int, int], Path] = {}
    contents: dict[Path, bytes] = {}
    for path, inode in names.items():
        if inode >= 0 and Path(path).name != MARKS and _has_folders(path, names):
            file = point.files[inode]
            contents[room / path] = applied(file.synced, _surviving(file.pending, mode, chance))
            laid[point.identities.get(inode, (0, 0))] = room / path
    for target, content in contents.items():
        target.write_bytes(content)
        target.chmod(0o600)
    for target, content in contents.items():
        _mend_identity(target, content, laid)


def _has_folders(path: str, names: dict[str, int]) -> bool:
    return all(names.get(folder) == -1 for folder in _above(path))


def _above(path: str) -> Iterable[str]:
    while path:
        path = folder_of(path)
        yield path


def _surviving_names(point: Point, mode: str, chance: random.Random) -> Iterable[NameChange]:
    """In each folder the changes up to some point."""
    if mode != NAMES:
        return point.changes
    folders = sorted({folder for change in point.changes for folder in change.folders})
    counts = {folder: sum(folder in change.folders for change in point.changes) for folder in folders}
    left = {folder: chance.choice((0, chance.randint(0, counts[folder]), counts[folder])) for folder in folders}
    kept = []
    for change in point.changes:
        if all(left[folder] > 0 for folder in change.folders):
            kept.append(change)
        for folder in change.folders:
            left[folder] = left[folder] - 1 if all(left[other] > 0 for other in change.folders) else 0
    return kept


def _surviving(pending: tuple[Pending, ...], mode: str, chance: random.Random) -> Iterable[Pending]:
    if mode in (ALL, NAMES):
        return pending
    if mode == NOTHING:
        return ()
    probability = chance.choice((0.1, 0.5, 0.9))
    kept: list[Pending] = []
    for change in pending:
        if mode == TORN and change.data is not None and chance.random() < 0.5:
            kept += _torn(change, chance)
        elif chance.random() < probability:
            kept.append(change)
    return kept


def _torn(change: Pending, chance: random.Random) -> Iterable[Pending]:
    """Some of the sectors that a write covers."""
    assert change.data is not None
    at, end = change.at, change.at + len(change.data)
    while at < end:
        until = min(end, (at // SECTOR + 1) * SECTOR)
        if chance.random() < 0.5:
            yield Pending(at, change.data[at - change.at : until - change.at])
        at = until


def _mend_identity(target: Path, content: bytes, laid: dict[tuple[int, int], Path]) -> None:
    """The files of a disk have the same inodes after a power loss. Those that are laid out here have others."""
    if "revision" not in target.name or len(content) < _DATA_IDENTITY_AT + _IDENTITY.size:
        return
    named = _IDENTITY.unpack_from(content, _DATA_IDENTITY_AT)
    if named != (0, 0) and named in laid:
        status = laid[named].stat()
        with target.open("r+b") as file:
            file.seek(_DATA_IDENTITY_AT)
            file.write(_IDENTITY.pack(status.st_dev, status.st_ino))
