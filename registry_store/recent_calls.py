"""What the last few calls showed: the longest completed one, and the backoff after timeouts.

A process keeps a `Recent` for its own calls, to act on them at once. The joint statistics hold one for all processes.
"""

from __future__ import annotations

from typing import Final

import msgspec

BLOCK: Final = 16
"""Completed calls. The longest is taken over the block that is being filled and the full one before: 16 to 32 calls."""
_MOST_IN_ROW: Final = 2**31


class Recent(msgspec.Struct, array_like=True, gc=False):
    """Durations in milliseconds; 0.0: none. Advice is made from `longest` and `backoff`."""

    in_block: int = 0
    longest_of_block: float = 0.0
    longest_before: float = 0.0
    backoff: float = 0.0
    """The least limit, until a call completes."""
    in_row: int = 0
    """Timeouts since the last completed call."""

    @property
    def longest(self) -> float:
        """The longest completed call of the last 16 to 32, in milliseconds; 0.0 before the first."""
        return max(self.longest_of_block, self.longest_before)

    def completed_as_usual(self, milliseconds: float) -> bool:
        """Count a call that completed if `longest` and `backoff` stay for sure. Returns whether it was counted."""
        if self.in_row:
            return False
        if self.in_block < BLOCK and milliseconds <= self.longest_of_block:  # the usual call
            self.in_block += 1
            return True
        is_longest = milliseconds > self.longest_of_block and milliseconds > self.longest_before
        if is_longest or (self.in_block >= BLOCK and self.longest_of_block < self.longest_before):
            return False
        self.completed(milliseconds)
        return True

    def completed(self, milliseconds: float, calls: int = 1) -> None:
        """Count calls that completed; the longest of them took `milliseconds`."""
        if self.in_block >= BLOCK:
            self.longest_before, self.longest_of_block, self.in_block = self.longest_of_block, 0.0, 0
        self.in_block += calls
        if milliseconds > self.longest_of_block:
            self.longest_of_block = milliseconds
        if self.in_row:
            self.backoff, self.in_row = 0.0, 0

    def timed_out(self, limit: float, ceiling: float, calls: int = 1) -> None:
        """Count timeouts in a row, whose largest limit was `limit` ms. The backoff never exceeds `ceiling` ms."""
        self.backoff = max(self.backoff, min(2 * limit, ceiling))
        self.in_row = min(self.in_row + calls, _MOST_IN_ROW)
