"""Who has a cell of the file of leases, and taking it from a process that only keeps it.

A process keeps a cell after its call, and begins the next call in it without a lock: it stores CLAIMING in its slot,
and then loads the cell's owner. If that is still itself, it stores since when. Another process that needs the cell has
the lock on its byte: it marks the owner as REVOKING, makes a barrier in all processes, and then loads the slot. So
either the first one sees the mark and withdraws, or the other one sees the slot and withdraws. Never do both go on.

Owners change only under the lock of the cell, and in one store each. So whoever dies or is interrupted between any two
steps leaves a cell that has its former owner or its next one. A mark that is left counts for nothing under the lock.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from itertools import chain
from types import ModuleType
from typing import Final

from dspy_registry.registry_store.boot_clock import ProcessIdentity, own_identity
from dspy_registry.registry_store.lease_file import (
    ALIVE,
    CELL,
    CELL_BYTES,
    PROCESS,
    REGION_HEADER,
    LeaseFile,
    LeaseFileReplacedError,
    RegionAt,
)
from dspy_registry.registry_store.lease_records import (
    CLAIMING,
    GENERATIONS,
    IDLE,
    LOCKED,
    OWNER_IN_CELL,
    REVOKING,
    WORDS,
    ProcessRecord,
    record_of,
    slot_of,
)

_WORD: Final = struct.Struct("@Q")  # native: a word is loaded and stored in one piece
_MOMENT: Final = struct.Struct("@d")
_HEAD: Final = struct.Struct("@QQQ")
_RECORD_CELLS: Final = WORDS * _WORD.size // CELL_BYTES


def may_keep_cells() -> bool:
    """Whether this process can keep cells. Call it before `claim_record`, without locks: it may take milliseconds."""
    return bool(_barriers().register())


def claim_record(file: LeaseFile) -> ProcessRecord | None:
    """A record for this opened file; None: it was not possible. The caller holds ALLOCATING, and may keep cells."""
    at = next((at for at in file.regions() if _is_unclaimed(file, at)), None)
    if at is None:
        at = file.allocate(PROCESS, _RECORD_CELLS)
    # Never one that it had before: after a power loss the file may be older than what refers to it.
    former: int = _HEAD.unpack_from(file.map, at.cells_at)[0]
    generation = max(former + 1, int(time.time()) % GENERATIONS) % GENERATIONS
    # first, while nobody lives in it: from here on the cells of the former generation are free
    _HEAD.pack_into(file.map, at.cells_at, generation, *own_identity())
    if not file.lock(ALIVE + at.start):
        return None
    return ProcessRecord(file.map, at.start, at.cells_at, generation)


def _is_unclaimed(file: LeaseFile, at: RegionAt) -> bool:
    return at.key == PROCESS and at.cells == _RECORD_CELLS and not file.is_locked_elsewhere(ALIVE + at.start)


def owner_of(file: LeaseFile, start: int) -> int:
    """The owner of a cell, without the mark of someone who is about to take it."""
    found: int = _WORD.unpack_from(file.map, start + OWNER_IN_CELL)[0]
    return found & ~REVOKING


def set_owner(file: LeaseFile, start: int, owner: int) -> None:
    """The caller holds the cell's lock."""
    _WORD.pack_into(file.map, start + OWNER_IN_CELL, owner)


def slot_value(file: LeaseFile, owner: int) -> float:
    """What is in the slot of an owner: IDLE, CLAIMING, or since when its call runs."""
    at = record_of(owner)[0] + REGION_HEADER + slot_of(owner) * _MOMENT.size
    if not _is_mapped(file, at):
        return IDLE
    found: float = _MOMENT.unpack_from(file.map, at)[0]
    return found


def is_alive(file: LeaseFile, owner: int) -> bool:
    """Whether the process that owns a cell still has its record."""
    start, generation = record_of(owner)
    own = file.record
    if own is not None and own.start == start:
        return own.generation == generation
    if not file.is_locked_elsewhere(ALIVE + start) or not _is_mapped(file, start + REGION_HEADER):
        return False
    # after the lock was seen: a claimant stores its generation before it takes the lock
    return bool(_WORD.unpack_from(file.map, start + REGION_HEADER)[0] == generation)


def revoke(file: LeaseFile, start: int, owner: int) -> bool:
    """Take a cell from a process that owns it, if that has no call in it. The caller holds the cell's lock."""
    if _is_own(file, start, owner):  # no thread of this process has a lease in it: the caller is the next one
        return True
    set_owner(file, start, owner | REVOKING)
    _barriers().everywhere_surely()
    if slot_value(file, owner) == IDLE or not is_alive(file, owner):
        return True
    set_owner(file, start, owner)
    return False


def revoke_all(file: LeaseFile, regions: Iterable[RegionAt]) -> bool:
    """`revoke` all cells of regions, or none of them. The caller holds their locks, and no lease."""
    kept = [found for at in regions for found in _kept_in(file, at)]
    for start, owner in kept:
        set_owner(file, start, owner | REVOKING)
    if kept:
        _barriers().everywhere_surely()
    if not any(slot_value(file, owner) != IDLE and is_alive(file, owner) for _, owner in kept):
        return True
    for start, owner in kept:
        set_owner(file, start, owner)
    return False


def _kept_in(file: LeaseFile, at: RegionAt) -> list[tuple[int, int]]:
    """The cells of a region that processes keep or kept, and their owners."""
    words = memoryview(file.map)[at.cells_at : at.end].cast("Q")
    owners = words[OWNER_IN_CELL // _WORD.size :: CELL_BYTES // _WORD.size].tolist()
    found = zip(cells_of(at), owners, strict=True)
    return [(start, owner & ~REVOKING) for start, owner in found if owner > LOCKED]


def announced() -> None:
    """Call this between the announcement of a waiter and its try: then one of two things is sure.

    Whoever ends a call now sees the announcement, or the try sees that the call has ended. Where no barrier is possible
    here, but elsewhere, a waiter may be told too late. It looks again by itself.
    """
    _barriers().everywhere()


def is_in_use(file: LeaseFile, start: int) -> bool:
    """Whether a call is under way in a cell, or is just beginning."""
    owner = owner_of(file, start)
    if owner > LOCKED:
        return slot_value(file, owner) != IDLE and is_alive(file, owner)
    return owner == LOCKED and file.is_held(start)


def call_in(file: LeaseFile, start: int) -> tuple[ProcessIdentity, float] | None:
    """Whose call is under way in a cell, and since when, in seconds on the boot-time clock. None: no call is."""
    owner = owner_of(file, start)
    if owner <= LOCKED:
        return cell_content(file, start) if owner and file.is_held(start) else None
    since = slot_value(file, owner)
    if since in (IDLE, CLAIMING) or not is_alive(file, owner):
        return None
    _, pid, started = _HEAD.unpack_from(file.map, record_of(owner)[0] + REGION_HEADER)
    return ProcessIdentity(pid, started), since


def cell_content(file: LeaseFile, start: int) -> tuple[ProcessIdentity, float]:
    """The process that a cell's holder wrote into it, and a time in seconds on the boot-time clock. Only a hint."""
    pid, started, moment = CELL.unpack_from(file.map, start)
    return ProcessIdentity(pid, started), moment


def cells_of(at: RegionAt) -> range:
    """Where the cells of a region begin."""
    return range(at.cells_at, at.end, CELL_BYTES)


def free_first(file: LeaseFile, starts: Iterable[int]) -> Iterator[int]:
    """Cells that may take a call, the likeliest first. The others do not: a call is under way in them.

    It takes no lock. So a cell may look free and be taken when its lock is asked for, or the reverse.
    """
    idle: list[int] = []
    unlocked: list[int] = []
    locked: list[int] = []
    busy: list[tuple[int, int]] = []
    held = file.held
    for start in starts:
        if start in held:
            continue
        owner = owner_of(file, start)
        if not owner:
            yield start
        elif owner == LOCKED:
            (locked if cell_content(file, start)[0].pid else unlocked).append(start)
        elif slot_value(file, owner) == IDLE:
            idle.append(start)
        else:
            busy.append((start, owner))
    yield from chain(unlocked, idle, locked)
    living: dict[tuple[int, int], bool] = {}
    for start, owner in busy:
        record = record_of(owner)
        if record not in living:
            living[record] = is_alive(file, owner)
        if not living[record]:
            yield start


def _is_own(file: LeaseFile, start: int, owner: int) -> bool:
    kept = file.record.kept.get(start) if file.record is not None else None
    return kept is not None and kept.mine == owner


def _is_mapped(file: LeaseFile, at: int) -> bool:
    """Whether there is a word at this place. A record may be younger than the mapping."""
    if at + _WORD.size > len(file.map) and at < file.end:
        try:
            file.cover(file.end)
        except LeaseFileReplacedError:
            if not file.is_retired:
                raise
    return at + _WORD.size <= len(file.map)


def _barriers() -> ModuleType:
    """The module that needs ctypes: only those who use limits load it."""
    from dspy_registry.registry_store import barriers

    return barriers
