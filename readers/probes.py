"""At most one probe of a half-open circuit at a time, on the whole host."""

from __future__ import annotations

import time
from typing import Final

from dspy_registry.readers.leases import Leases, own_identity
from dspy_registry.registry_store.boot_clock import boot_seconds, is_running
from dspy_registry.registry_store.byte_locks import Hold
from dspy_registry.registry_store.lease_file import CELL, CELL_BYTES, PROBE, LeaseFile, cell_holder

SETTLES: Final = 1.0
"""Seconds from a failure until the daemon has surely heard of it, and the circuit is open again."""

_TRIES: Final = 20
_PAUSE: Final = 0.0002  # each time longer, 40 ms in all: on a busy machine whoever claims may not run for so long
_ENDED: Final = b""


class Probe:
    """The right to try a half-open module version, until `end` or the deadline. Then any process may take it."""

    def __init__(self, file: LeaseFile, start: int, written: bytes) -> None:
        self._file = file
        self._start = start
        self._written = written

    def end(self, ok: bool = True) -> None:
        """Let another process probe. `ok` False: the call failed, and nobody probes until the daemon has heard of it.

        Does nothing if another process has claimed the probe after the deadline, and nothing the second time.
        """
        written, cell = self._written, self._file.map
        if written and self._file.is_open and cell[self._start : self._start + len(written)] == written:
            left = bytes(CELL_BYTES) if ok else _content(SETTLES)
            cell[self._start : self._start + len(left)] = left
        self._written = _ENDED


def claim_probe(leases: Leases, name: str, version: int, seconds: float) -> Probe | None:
    """The right to probe for `seconds`. None: another process has it. Raises StoreError, StorePermissionError.

    The claim is made under a lock that is held for microseconds. If a process is stopped while it holds the lock, the
    others go by the cell alone: that two probe at once is better than that nobody does.
    """
    key = f"{PROBE}{name}@{version}"
    claim = _content(seconds)  # before the lock is taken: the first one of a process reads a file of the kernel
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
    holder, deadline = cell_holder(file, start)
    if holder.pid and boot_seconds() < deadline and is_running(holder):
        return None
    file.map[start : start + len(claim)] = claim
    return Probe(file, start, claim)


def _content(seconds: float) -> bytes:
    """The cell of this process until so many seconds from now."""
    return CELL.pack(*own_identity(), boot_seconds() + seconds)
