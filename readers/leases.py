"""Taking and giving back one of the calls that a limit allows, without waiting. `limits` waits.

Any number of processes and threads may take part, and any of them may be killed, stopped or interrupted. There are
never more calls than the limit, and a call whose holder has ended is free at once.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final
from weakref import WeakValueDictionary, ref

from dspy_registry.readers.lease_regions import Region
from dspy_registry.registry_store.byte_locks import Hold
from dspy_registry.registry_store.errors import StoreError
from dspy_registry.registry_store.lease_cells import (
    claim_record,
    may_keep_cells,
    owner_of,
    revoke,
    set_owner,
)
from dspy_registry.registry_store.lease_file import (
    ALLOCATING,
    CELL,
    MOST_CELLS,
    PROBE,
    PROCESS,
    REGIONS_AT,
    LeaseFile,
    LeaseFileReplacedError,
)
from dspy_registry.registry_store.lease_records import CLAIMING, IDLE, LOCKED, KeptCell

_FEWEST_CELLS: Final = 16
_ALLOCATION_SECONDS: Final = 5.0
_PAUSE: Final = 0.0005

_gettime, _BOOTTIME = time.clock_gettime, time.CLOCK_BOOTTIME


class Lease(Hold):
    """One call of a limit. `begin` does not wait. `give_back` may be called any number of times."""

    __slots__ = ("_kept", "region")

    file: LeaseFile

    def __init__(self, region: Region) -> None:
        self.start = -1  # as `Hold` does, but without a call
        self.file = region.file
        self._me = ref(self)
        self.region = region
        self._kept: KeptCell | None = None

    def begin(self, calls: int) -> bool:
        """Begin a call under a limit of `calls`, if one is free. Returns whether it has begun."""
        region = self.region
        room = calls if region.widest[()] == calls else region.room(calls)
        if region.idle:
            try:
                kept = region.idle.pop()
            except IndexError:  # another thread was quicker
                pass
            else:
                if kept.index < room and self._begin_again(kept):
                    return True
        latest = region.latest
        if latest >= 0 and room and latest <= region.starts[room - 1] and self._begin_at(latest):
            return True
        return any(map(self._begin_at, region.order(room)))

    def _begin_again(self, kept: KeptCell) -> bool:
        """Begin a call in a kept cell, if nobody took the cell. `lease_cells` says why that needs no lock."""
        held, start, me = self.file.held, kept.start, self._me
        self.start = start  # from here on `give_back` knows what to look for
        if held.setdefault(start, me) is me:
            slot = kept.slot
            slot[()] = CLAIMING
            if kept.owner[()] == kept.mine:
                slot[()] = _gettime(_BOOTTIME)
                self._kept = kept
                return True
            slot[()] = IDLE
            del held[start]
        self.start = -1
        return False

    def _begin_at(self, start: int) -> bool:
        file = self.file
        with file.giving_back:  # nor can it be closed meanwhile: then the cell would be others' to change
            if not self.take(start):
                return False
            owner = owner_of(file, start)
            # retired: a call in it no longer counts
            if file.retired[()] or (owner > LOCKED and not revoke(file, start, owner)):
                self.give_back()
                return False
            self._settle(start, owner)
        return True

    def _settle(self, start: int, owner: int) -> None:
        """Begin the call in a cell whose lock is held, and keep the cell from now on if that is possible."""
        file, region = self.file, self.region
        record = file.record
        kept = None if record is None else record.keep(file.map, start, region.starts)
        if kept is None:
            CELL.pack_into(file.map, start, *region.identity, _gettime(_BOOTTIME))
            if owner != LOCKED:
                set_owner(file, start, LOCKED)
            region.latest = start
            return
        kept.slot[()] = _gettime(_BOOTTIME)
        kept.owner[()] = kept.mine
        file.unlock(start)
        self._kept = kept  # last: before it, `give_back` unlocks the cell too

    def give_back(self) -> None:
        """Let another call begin in its place."""
        start = self.start
        if start < 0:
            return
        file, region = self.file, self.region
        if file.descriptor >= 0:  # not in a forked child: there it is the parent's
            with file.giving_back:  # the cell is the next holder's as soon as its entry is removed
                if file.held.get(start) is self._me:
                    kept = self._kept
                    if kept is None:
                        file.map[start : start + 8] = _NO_PID
                        file.let_go(start)
                    else:
                        kept.slot[()] = IDLE
                        del file.held[start]
                        region.idle.append(kept)
            if region.awaited_until[()]:  # a waiter stored it before its try, so before the cell was free
                region.tell()
        self._kept = None
        self.start = -1  # last: after an exception before it, the next call goes on, and tells


_NO_PID: Final = bytes(8)


class _View:
    """One opened file and what was looked up in it.

    Kept together, because two threads may open the file, or its successor, at the same time.
    """

    def __init__(self, file: LeaseFile) -> None:
        self.file = file
        self.regions: dict[str, Region] = {}
        self._seen_to = REGIONS_AT
        self._may_keep: bool | None = None  # not known yet

    @property
    def is_current(self) -> bool:
        """False after a fork, and when another file has taken its place."""
        file = self.file
        return file.descriptor >= 0 and not file.retired[()]

    def prepared(self, key: str, calls: int) -> Region:
        """The cells of a key, allocated if they do not exist yet."""
        allocating = Hold(self.file)
        if self._may_keep is None:
            self._may_keep = may_keep_cells()
        try:
            _await(allocating, self.file)
            self._look()
            region = self.regions.get(key)
            while region is None or len(region.starts) < calls:
                missing = calls - (len(region.starts) if region else 0)
                self.file.allocate(key, min(max(missing, _FEWEST_CELLS), MOST_CELLS))
                self._look()
                region = self.regions.get(key)
            if not key.startswith(PROBE):
                self._claim()
            region.widen(calls)
            return region
        finally:
            allocating.give_back()

    def _claim(self) -> None:
        """Claim a record, so that cells can be kept; once. Limits do without it. The caller holds ALLOCATING."""
        if self._may_keep and self.file.record is None:
            with suppress(StoreError):  # the disk or the file is full
                self.file.record = claim_record(self.file)
            self._may_keep = False  # do not try again

    def _look(self) -> None:
        """Add the regions that were allocated since the last look. The caller holds ALLOCATING."""
        for at in self.file.regions(self._seen_to):
            region = self.regions.get(at.key)
            if at.key == PROCESS:
                pass
            elif region is None:
                self.regions[at.key] = Region(self.file, at)
            else:
                region.add(at)
            self._seen_to = at.end


class Leases:
    """A process's view of the file `leases` in one folder, opened when it is first needed, and again after a fork.

    `leases_in` gives the same one to all that ask in this process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._view: _View | None = None

    def region(self, key: str, calls: int) -> Region:
        """The cells of a key, at least this many. Raises StoreError, StorePermissionError."""
        view = self._view
        if view is not None:
            region, file = view.regions.get(key), view.file
            if (
                region is not None
                and file.descriptor >= 0  # `is_current`, but without a call
                and not file.retired[()]
                and calls <= region.widest[()] <= len(region.starts)
            ):
                return region
        return self._prepared(key, calls)

    def file(self) -> LeaseFile:
        """The file in use."""
        return self._current().file

    def close(self) -> None:
        """Give back all that this process holds here."""
        view, self._view = self._view, None
        if view is not None:
            view.file.close()

    def _current(self) -> _View:
        view = self._view
        if view is None or not view.is_current:
            from dspy_registry.registry_store.lease_replacing import open_lease_file  # a reader seldom needs it

            view = self._view = _View(open_lease_file(self.folder))
        return view

    def _prepared(self, key: str, calls: int) -> Region:
        while True:
            view = self._current()
            try:
                return view.prepared(key, calls)
            except LeaseFileReplacedError:
                if not view.file.is_retired:  # replaced by hand: trying again cannot help
                    raise


_by_folder: WeakValueDictionary[str, Leases] = WeakValueDictionary()


def leases_in(folder: Path) -> Leases:
    """The process's view of the leases in this folder. It is kept while anybody has it."""
    leases = Leases(folder)
    return _by_folder.setdefault(os.path.realpath(folder), leases)


def _await(hold: Hold, file: LeaseFile) -> None:
    """Take ALLOCATING. Others hold it for microseconds. Raises StoreError if a process was stopped while holding it."""
    end = time.monotonic() + _ALLOCATION_SECONDS
    while not hold.take(ALLOCATING):
        if time.monotonic() > end:
            raise StoreError(
                f"{file.path}: a process was stopped while it allocated.",
                remedy="`lslocks` names it: continue or end it.",
            )
        file.sweep()
        time.sleep(_PAUSE)
