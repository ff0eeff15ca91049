"""A bound on how much is under way, for asyncio: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """A fixed number of slots. A task that finds no free slot waits in line. Taking a free one does not yield."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._line: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"Slots(free={self._free}, waiting={len(self._line)})"

    async def take(self, seconds: float | None) -> bool:
        """Take a slot. False when no slot became free within `seconds`; None: wait without a limit."""
        if self._free:
            self._free -= 1
            return True
        turn = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        try:
            await asyncio.wait((turn,), timeout=seconds)
        except asyncio.CancelledError:
            self._leave(turn)
            raise
        if turn.done():
            return True
        self._leave(turn)
        return False

    def give_back(self) -> None:
        """Hand the slot to the first in line."""
        if self._line:
            self._line.popleft().set_result(None)
        else:
            self._free += 1

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if turn.done():  # it was handed over at the same moment
            self.give_back()
        else:
            self._line.remove(turn)
