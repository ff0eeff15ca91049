"""The cells of one limit as this process sees them, how many of them may take a call, and who waits for one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from dspy_registry.registry_store.boot_clock import boot_seconds, own_identity
from dspy_registry.registry_store.lease_cells import announced, cells_of, free_first, is_in_use
from dspy_registry.registry_store.lease_file import LeaseFile, RegionAt
from dspy_registry.registry_store.lease_records import KeptCell

LONGEST_WAIT: Final = 0.25
"""Seconds after which a waiter looks again, because a holder that was killed wakes no waiter."""


class Region:
    """All cells with one key (one limit, or one probe), as this process sees them."""

    def __init__(self, file: LeaseFile, first: RegionAt) -> None:
        from dspy_registry.registry_store.futex import FutexWord  # ctypes is loaded only by those who need it

        self.key = first.key
        self.file = file
        self.word = FutexWord(file.map, first.word_at)
        self.starts: list[int] = []
        self.identity = own_identity()  # a forked child has regions of its own
        self.idle: list[KeptCell] = []
        """Cells that this process kept after a call, the latest last. Others may have taken them since."""
        self.latest = -1  # the cell that this process locked last for a call: most likely free; below 0: it keeps cells
        view = memoryview(file.map)
        self.widest = view[first.widest_at : first.widest_at + 4].cast("I", shape=[])
        """The largest limit under which any call has begun."""
        self.awaited_until = view[first.awaited_at : first.awaited_at + 8].cast("d", shape=[])
        """Until when somebody may be waiting, on the boot-time clock; 0: nobody ever waited."""
        self.add(first)

    def add(self, region: RegionAt) -> None:
        """The next cells of this key."""
        if not self.starts or region.cells_at > self.starts[-1]:  # an exception may have interrupted an earlier call
            self.starts += cells_of(region)

    def listen(self) -> None:
        """Announce a waiter. Call this before the next try, and again after LONGEST_WAIT."""
        # Twice the wait, so that an earlier deadline that another waiter writes later is still late enough.
        self.awaited_until[()] = boot_seconds() + 2 * LONGEST_WAIT
        announced()

    def tell(self) -> None:
        """Wake one waiter. Makes a system call only if somebody may be waiting."""
        self.word.change()
        if self.awaited_until[()] > boot_seconds():
            self.word.wake_one()

    def widen(self, calls: int) -> None:
        """Note a limit, before the first call under it begins. The caller holds ALLOCATING."""
        self.widest[()] = max(calls, self.widest[()])

    def order(self, below: int) -> Iterator[int]:
        """Where those of the first cells begin that may be free, the likeliest first."""
        return free_first(self.file, self.starts[:below])

    def room(self, calls: int) -> int:
        """How many of the first cells may take a call: `calls`, or fewer if the limit was lowered during calls.

        A call in cell i may begin if the cells up to i and the held cells after i are together at most `calls`. So
        the limit is kept, even if other calls begin at the same time.
        """
        beyond = range(calls, min(self.widest[()], len(self.starts)))  # the next look has cells that were just added
        held_beyond = sum(map(self._is_held, beyond))
        index = calls
        while held_beyond and index:
            index -= 1
            if index + 1 + held_beyond <= calls:
                return index + 1
            held_beyond += self._is_held(index)
        return index

    def _is_held(self, index: int) -> bool:
        start = self.starts[index]
        return start in self.file.held or is_in_use(self.file, start)
