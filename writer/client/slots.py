"""A bound on how much is under way, for asyncio: first come, first served."""

from __future__ import annotations

import asyncio
from collections import deque


class Slots:
    """So many slots; whoever finds none waits in line. Taking a free one does not yield to the loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._line: deque[asyncio.Future[None]] = deque()

    def __repr__(self) -> str:
        return f"Slots(free={self._free}, waiting={len(self._line)})"

    async def take(self, seconds: float | None) -> bool:
        """Take a slot; False when none became free within so many seconds (None: however long it takes)."""
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
        """Hand the slot to whoever is first in line."""
        if self._line:
            self._line.popleft().set_result(None)
        else:
            self._free += 1

    def _leave(self, turn: asyncio.Future[None]) -> None:
        if turn.done():  # it was handed over at the same moment
            self.give_back()
        else:
            self._line.remove(turn)
