"""At most one probe of a half-open circuit at a time, on the whole host."""

from __future__ import annotations

import time
from typing import Final

from dspy_registry.readers.leases import Leases
from dspy_registry.registry_store.boot_clock import boot_seconds, is_running, own_identity
from dspy_registry.registry_store.byte_locks import Hold
from dspy_registry.registry_store.lease_cells import cell_content
from dspy_registry.registry_store.lease_file import CELL, CELL_BYTES, PROBE, LeaseFile

SETTLES: Final = 1.0
"""Seconds after a failed probe in which nobody probes. By then the daemon has heard of it and opened the circuit."""

_TRIES: Final = 20
_PAUSE: Final = 0.0002  # seconds; each is longer, 42 ms in all: on a busy machine the holder may not run for so long
_ENDED: Final = b""


class Probe:
    """The right to try a half-open module version. It lasts until `end` or its deadline: then others may take it."""

    def __init__(self, file: LeaseFile, start: int, written: bytes) -> None:
        self._file = file
        self._start = start
        self._written = written

    def end(self, ok: bool = True) -> None:
        """Give the right back. `ok` says whether the call succeeded. If it failed, nobody probes for the next second.

        In that second the daemon hears of the failure and opens the circuit. A second call does nothing. So does a call
        after the deadline if another process has claimed the probe.
        """
        written, cell = self._written, self._file.map
        if written and self._file.is_open and cell[self._start : self._start + len(written)] == written:
            left = bytes(CELL_BYTES) if ok else _content(SETTLES)
            cell[self._start : self._start + len(left)] = left
        self._written = _ENDED


def claim_probe(leases: Leases, name: str, version: int, seconds: float) -> Probe | None:
    """Claim the right to probe for `seconds`. None: another process has it. Raises StoreError, StorePermissionError.

    The claim is made under a lock that is held for microseconds. If a process is stopped while it holds the lock,
    others claim without the lock: two probes at once are better than no probe.
    """
    key = f"{PROBE}{name}@{version}"
    claim = _content(seconds)  # before the lock is taken: the first call in a process reads from /proc
    for number in range(_TRIES):
        region = leases.region(key, 1)
        claiming = Hold(region.file)
        try:
            if claiming.take(region.starts[0]):
                if not region.file.is_retired:
                    return _claimed(region.file, region.starts[0], claim)
                continue
        finally:
            claiming.give_back()
        region.file.sweep()
        time.sleep(_PAUSE * (number + 1))
    return _claimed(region.file, region.starts[0], claim)


def _claimed(file: LeaseFile, start: int, claim: bytes) -> Probe | None:
    holder, deadline = cell_content(file, start)
    if holder.pid and boot_seconds() < deadline and is_running(holder):
        return None
    file.map[start : start + len(claim)] = claim
    return Probe(file, start, claim)


def _content(seconds: float) -> bytes:
    """The bytes of a cell that this process holds for `seconds`."""
    return CELL.pack(*own_identity(), boot_seconds() + seconds)
