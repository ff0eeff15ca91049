"""Readers that keep old pages from being used again: since when the daemon sees them, and a line in its log."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Final

import msgspec

from dspy_registry.registry_store.reader_table import Holder, Slot, command_of, holders

FAR_BEHIND: Final = 100
"""Transactions. A snapshot that is this far behind costs pages; one that is held while nothing changes costs none."""
LONG: Final = 60.0
"""Seconds for which the same snapshot must have been seen before it is logged."""

_log = logging.getLogger("dspy_registry")


class Laggards:
    """Told of the table of readers now and then, remembers when it first saw each transaction of each process."""

    def __init__(self) -> None:
        self._since: dict[Slot, float] = {}
        self._logged: set[Slot] = set()
        self._newest = 0

    def look(self, slots: Iterable[Slot], newest: int, now: float) -> None:
        """`now` is Unix time. A snapshot that is far behind for long is logged, once."""
        present = {slot for slot in slots if slot.transaction is not None}
        self._since = {slot: self._since.get(slot, now) for slot in present}
        self._logged &= present
        self._newest = newest
        for slot in sorted(present - self._logged):
            behind = newest - (slot.transaction or 0)
            if behind >= FAR_BEHIND and now - self._since[slot] >= LONG:
                self._logged.add(slot)
                _log.warning(
                    "process %d (%s) holds a snapshot that is %d transactions behind, for %d s at least: meanwhile the "
                    "data file grows with every change; close the snapshot, or end the process",
                    slot.pid,
                    command_of(slot.pid) or "unknown",
                    behind,
                    now - self._since[slot],
                )

    def holders(self, slots: Iterable[Slot], newest: int) -> list[Holder]:
        """Those that hold slots now, each with the time at which its oldest transaction was first seen."""
        oldest: dict[int, float] = {}
        lowest: dict[int, int] = {}
        for slot, since in self._since.items():
            number = slot.transaction or 0
            if number <= lowest.get(slot.pid, number):
                lowest[slot.pid], oldest[slot.pid] = number, since
        return [msgspec.structs.replace(found, since=oldest.get(found.pid)) for found in holders(slots, newest)]
