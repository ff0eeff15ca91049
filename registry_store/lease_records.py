"""What one process keeps of limits: the cells it may use again without asking, and where it says that it uses them.

A record is a region of the file of leases with the key PROCESS. In the place of cells it has 512 words of 8 bytes:

    word  0   generation: how often the record was claimed
          1   pid
          2   start time of the process, ticks since boot
          8…  slots, one for each kept cell: IDLE, CLAIMING, or since when its call runs, seconds since boot (a double)

The claimant holds a lock on the byte ALIVE + start of the region, so it ends with its process. Only the claimant of the
present generation writes the words. A slot belongs to one cell for as long as the record is claimed.

The owner of a cell is one word of the cell: 0 (nobody), LOCKED (whoever has the lock on its byte), or

    bit   0   REVOKING: the holder of the cell's lock is about to take it from its owner
          1   slot, 9 bits
          10  start of the record, in units of 8 bytes, 23 bits
          33  generation, 31 bits
"""

from __future__ import annotations

import mmap
from typing import Final

REVOKING: Final = 1
LOCKED: Final = 2
"""The largest owner that is not a record's."""

IDLE: Final = 0.0
CLAIMING: Final = -1.0

WORDS: Final = 512
_WORD: Final = 8
_FIRST_SLOT: Final = 8
OWNER_IN_CELL: Final = 24
GENERATIONS: Final = 2**31
_SLOT_AT, _START_AT, _GENERATION_AT = 1, 10, 33
_START_MASK: Final = 2**23 - 1


def owner_word(start: int, slot: int, generation: int) -> int:
    """The owner of a cell that is kept in this slot of the record that starts here."""
    return generation << _GENERATION_AT | start // _WORD << _START_AT | slot << _SLOT_AT


def record_of(owner: int) -> tuple[int, int]:
    """Where the owner's record starts, and its generation."""
    return (owner >> _START_AT & _START_MASK) * _WORD, owner >> _GENERATION_AT


def slot_of(owner: int) -> int:
    """The number of the owner's slot."""
    return owner >> _SLOT_AT & WORDS - 1


class KeptCell:
    """A cell that this process keeps after a call. `owner` is a word of the cell: `mine` until somebody takes it."""

    __slots__ = ("index", "mine", "owner", "slot", "start")

    def __init__(self, start: int, index: int, owner: memoryview[int], slot: memoryview[float], mine: int) -> None:
        self.start = start
        self.index = index
        self.owner = owner
        self.slot = slot
        self.mine = mine


class ProcessRecord:
    """The record that one opened file has claimed. After `release` none of its words can be written any more."""

    def __init__(self, mapping: mmap.mmap, start: int, words_at: int, generation: int) -> None:
        self.start = start
        self.generation = generation
        self.kept: dict[int, KeptCell] = {}
        """By the offset of the cell."""
        self._words = memoryview(mapping)[words_at : words_at + WORDS * _WORD]
        self._free = list(range(WORDS - 1, _FIRST_SLOT - 1, -1))

    def keep(self, mapping: mmap.mmap, start: int, starts: list[int]) -> KeptCell | None:
        """The cell at `start`, one of `starts`, as a kept one; None: the record is full.

        The caller holds the lock of the cell, and no other thread releases the record meanwhile.
        """
        found = self.kept.get(start)
        if found is not None or not self._free:
            return found
        number = self._free.pop()
        slot = self._words[number * _WORD : (number + 1) * _WORD].cast("d", shape=[])
        at = start + OWNER_IN_CELL
        owner = memoryview(mapping)[at : at + _WORD].cast("Q", shape=[])
        mine = owner_word(self.start, number, self.generation)
        found = self.kept[start] = KeptCell(start, starts.index(start), owner, slot, mine)
        return found

    def release(self) -> None:
        """Before the lock on the record ends: another process may then write the words, so this one no longer can."""
        self._free.clear()
        for kept in list(self.kept.values()):
            kept.slot.release()
            kept.owner.release()
