"""The file `leases`: which processes of this host hold parts of limits, and which one probes a half-open circuit.

    header   0     magic
             64    end of what is allocated, 8 bytes
             72    1: this file was replaced by another, 8 bytes
    regions  from 4096 on, each a header of 320 bytes and cells of 32

    region   0     bytes of it, 4          cell  0   pid, 8 (0: free)
             4     cells, 4                      8   start time of the process, ticks since boot, 8
             8     widest limit so far, 4        16  since when, or until when, seconds since boot, 8
             12    futex word, 4                 24  owner, 8: `lease_records` says what it means
             16    length of the key, 4
             24    until when somebody may be waiting, seconds since boot, 8
             32    key

A limit of N calls is the first N cells of the regions with its key, in the order of the file. A lease is a lock on the
first byte of a cell, or a word in the record of the cell's owner (`lease_cells`). The rest of a cell is a hint. An
allocated region never moves, so a process may keep its offset. A region is allocated under the lock on byte 0: it is
written first, then the end is raised.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from dspy_registry.registry_store import access
from dspy_registry.registry_store.byte_locks import LockedFile, descriptor_identity
from dspy_registry.registry_store.disk import explained
from dspy_registry.registry_store.errors import RegistryError, RegistryNotFoundError, StoreError, StorePermissionError
from dspy_registry.registry_store.lease_records import IDLE
from dspy_registry.registry_store.own_files import new_file, open_binary

if TYPE_CHECKING:
    from dspy_registry.registry_store.lease_records import ProcessRecord

LEASES_FILE: Final = "leases"
ALLOCATING: Final = 0
"""The byte whose lock is held while a region is allocated."""

ALIVE: Final = 2**40
"""Behind all cells: locks on the bytes from here on are of records. The lock on ALIVE + its start says who has one."""

REGIONS_AT: Final = 4096
REGION_HEADER: Final = 320
CELL_BYTES: Final = 32
MOST_CELLS: Final = 4096  # of one region
LARGEST_FILE: Final = 64 * 1024 * 1024
_GROWTH: Final = 64 * 1024

MAGIC: Final = b"dspy-leases-2\n\0\0"
_END_AT, _RETIRED_AT = 64, 72
_WIDEST_AT, _WORD_AT, _AWAITED_AT, _KEY_AT = 8, 12, 24, 32
_NUMBERS: Final = struct.Struct("=IIIII")
CELL: Final = struct.Struct("=QQd")
_LONGEST_KEY: Final = REGION_HEADER - _KEY_AT

PROBE: Final = "probe:"
"""Begins the key of a probe's region. The keys of limits are made by `policy`."""

PROCESS: Final = "process"
"""The key of the regions that are records of processes."""


class RegionAt(msgspec.Struct, frozen=True, gc=False):
    """Where a region lies. `start` is the offset of its header, `cells` the number of its cells."""

    key: str
    start: int
    cells: int

    @property
    def cells_at(self) -> int:
        """Where its first cell begins."""
        return self.start + REGION_HEADER

    @property
    def end(self) -> int:
        """Where the next region begins."""
        return self.cells_at + self.cells * CELL_BYTES

    @property
    def word_at(self) -> int:
        """Where its futex word lies."""
        return self.start + _WORD_AT

    @property
    def awaited_at(self) -> int:
        """Where the time lies until which somebody may be waiting."""
        return self.start + _AWAITED_AT

    @property
    def widest_at(self) -> int:
        """Where its widest limit lies."""
        return self.start + _WIDEST_AT


class LeaseFileReplacedError(StoreError):
    """Another file has taken the place of the one that was opened. Open the new one."""


class LeaseFile(LockedFile):
    """The file, opened and mapped. Raises RegistryNotFoundError, StorePermissionError, StoreError.

    `map` is replaced when the file has grown. Views of the former map stay valid.
    """

    record: ProcessRecord | None = None
    """Which cells it keeps; None: nothing yet, or nothing can be kept here."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEASES_FILE
        try:
            super().__init__(self.path)
        except FileNotFoundError as error:
            raise RegistryNotFoundError(f"there is no file {self.path}.") from error
        except PermissionError as error:
            raise StorePermissionError(
                f"{self.path} cannot be opened: {error.strerror}.",
                remedy="Workers that use limits must be able to write it: run them as the writer's user or group.",
            ) from error
        self.map = self._mapped()
        if self.map[: len(MAGIC)] != MAGIC:
            raise damaged(self.path, "it is not a file of leases")
        self.retired = memoryview(self.map)[_RETIRED_AT : _RETIRED_AT + 8].cast("Q", shape=[])
        self._end = memoryview(self.map)[_END_AT : _END_AT + 8].cast("Q", shape=[])

    def __repr__(self) -> str:
        return f"LeaseFile({str(self.path)!r}, end={self.end})"

    def close(self) -> None:
        """Close the file. This ends every lock on it, and every call."""
        with self.giving_back:
            if self.record is not None:
                self.record.release()
            super().close()

    def let_go(self, start: int) -> None:
        """End the call in a cell, and remove its entry. The caller holds `giving_back`, and has seen whose it is."""
        if self.record is not None and start in self.record.kept:
            self.record.kept[start].slot[()] = IDLE
        LockedFile.let_go(self, start)

    @property
    def is_retired(self) -> bool:
        """Whether another file has taken its place. Read it again after taking a lock: then it can no longer change."""
        return self.retired[()] != 0

    @property
    def end(self) -> int:
        """Where the next region will begin."""
        return self._end[()]

    def regions(self, start: int = REGIONS_AT) -> Iterator[RegionAt]:
        """The regions that begin at `start` or after it. Raises StoreError if the file is damaged."""
        end = self.end
        self.cover(end)
        while start < end:
            region = self._region(start, end)
            yield region
            start = region.end

    def allocate(self, key: str, cells: int) -> RegionAt:
        """A new region, its cells free. The caller holds ALLOCATING. Raises StoreError when there is no room."""
        text = key.encode()
        start, size = self.end, REGION_HEADER + cells * CELL_BYTES
        if len(text) > _LONGEST_KEY or not 1 <= cells <= MOST_CELLS:
            raise ValueError(f"no region can have the key {key!r} and {cells} cells")
        if start + size > LARGEST_FILE:
            raise StoreError(f"{self.path} is full.", remedy="Stop all that use limits. Then the daemon empties it.")
        self._extend(start + size)
        self.map[start : start + size] = bytes(size)
        _NUMBERS.pack_into(self.map, start, size, cells, 0, 0, len(text))
        self.map[start + _KEY_AT : start + _KEY_AT + len(text)] = text
        self._end[()] = start + size
        return RegionAt(key, start, cells)

    def retire(self) -> None:
        """Mark the file as replaced by another one. The caller holds the locks on all cells, and has revoked them."""
        self.retired[()] = 1

    def cover(self, end: int) -> None:
        """Map the file at least up to `end`. Raises StoreError if it is shorter."""
        if end > len(self.map):
            self.map = self._mapped()
        if not REGIONS_AT <= end <= len(self.map):
            raise damaged(self.path, f"its regions end at {end}, it has {len(self.map)} bytes")

    def _extend(self, end: int) -> None:
        if end > os.fstat(self.descriptor).st_size:
            with explained(self.path.parent):  # allocated now: a store into a hole causes SIGBUS on a full disk
                os.posix_fallocate(self.descriptor, 0, -(-end // _GROWTH) * _GROWTH)
        self.cover(end)

    def _mapped(self) -> mmap.mmap:
        with open_binary(self.path, writable=True) as file:
            size = os.fstat(file.fileno()).st_size
            if descriptor_identity(file.fileno()) != self.identity:
                raise LeaseFileReplacedError(f"{self.path} has been replaced.", remedy="Try again.")
            if size < REGIONS_AT:
                raise damaged(self.path, f"it has {size} bytes")
            return mmap.mmap(file.fileno(), size)

    def _region(self, start: int, end: int) -> RegionAt:
        size, cells, widest, _, length = _NUMBERS.unpack_from(self.map, start)
        fits = start + size <= end and size == REGION_HEADER + cells * CELL_BYTES
        if not fits or not 1 <= cells <= MOST_CELLS or length > _LONGEST_KEY or widest > LARGEST_FILE:
            raise damaged(self.path, f"its region at {start} is malformed")
        key_at = start + _KEY_AT
        try:
            return RegionAt(self.map[key_at : key_at + length].decode(), start, cells)
        except UnicodeDecodeError as error:
            raise damaged(self.path, f"its region at {start} has no key") from error


def ensure_lease_file(folder: Path, group: int | None = None) -> Path:
    """Create the file if it is missing, whole or not at all. Raises StoreError, StorePermissionError."""
    path = folder / LEASES_FILE
    if path.exists():
        return path
    temporary = new_lease_file(folder, group)
    try:
        with suppress(FileExistsError):  # another process was quicker: its file counts
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def lease_file_problems(folder: Path) -> list[str]:
    """What is wrong with the file; empty: nothing, or the file is missing."""
    if not (folder / LEASES_FILE).exists():
        return []
    try:
        file = LeaseFile(folder)
        try:
            list(file.regions())
        finally:
            file.close()
    except StorePermissionError:  # it is not for this user to look at
        return []
    except RegistryError as error:
        return [error.message]
    return []


def new_lease_file(folder: Path, group: int | None) -> Path:
    """A file without regions, by a temporary name. Raises StorePermissionError, OSError."""
    content = bytearray(_GROWTH)
    content[: len(MAGIC)] = MAGIC
    struct.pack_into("=Q", content, _END_AT, REGIONS_AT)
    temporary = folder / f".{LEASES_FILE}.{os.getpid()}.{threading.get_ident()}"
    try:
        with new_file(temporary) as file:
            os.fchmod(file.fileno(), access.mode_for_umask(access.LOCK))
            file.write(content)
        access.admit(temporary, group, access.LOCK)
    except PermissionError as error:
        raise StorePermissionError(
            f"{folder / LEASES_FILE} cannot be created: {error.strerror}.",
            remedy="Start the writer once: it creates the file for its group.",
        ) from error
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def damaged(path: Path, why: str) -> StoreError:
    """The error for a file that cannot be used as it is."""
    return StoreError(f"{path} is damaged: {why}.", remedy="Stop all that use the registry, then delete this file.")
