"""Steps of the watch that wait to be put in force: whole transactions, in order, as many in one commit as there are.

While a change of this host is under way that does not wait for what comes before it, nobody on this host waits for that
either. So it waits, for a moment at most, and shares the commit of the own change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from dspy_registry.writer.cluster.engine import Events

MOST_WAITING: Final = 64
"""Steps. While as many wait, nothing more is read."""
_LONGEST_WAIT: Final = 0.04  # seconds


class Backlog:
    """Of one host. Belongs to the daemon's loop.

    `is_due` tells whether steps up to a global revision are waited for, `is_urgent` whether a step may not wait.
    None waits for more than `longest` seconds.
    """

    def __init__(
        self, is_due: Callable[[int], bool], is_urgent: Callable[[Events], bool], longest: float = _LONGEST_WAIT
    ) -> None:
        self._longest = longest
        self._is_due = is_due
        self._is_urgent = is_urgent
        self._is_expecting = False
        self._stirred = asyncio.Event()
        self._queue: asyncio.Queue[Events] = asyncio.Queue(MOST_WAITING)

    def clear(self) -> None:
        """Forget what waits: the watch begins again, and reads it again."""
        self._queue = asyncio.Queue(MOST_WAITING)

    def expect(self, is_expecting: bool) -> None:
        """A change of this host is under way that does not wait for what comes before it; or is no longer."""
        self._is_expecting = is_expecting
        self.stir()

    def stir(self) -> None:
        """Look again what is due."""
        self._stirred.set()

    async def put(self, step: Events) -> None:
        """Add a step. Waits while there are too many."""
        await self._queue.put(step)
        self.stir()

    async def take(self) -> list[Events]:
        """What is to be put in force next, in one commit: at least one step. Tell by `done` when it is."""
        steps = [await self._queue.get()]
        until = time.monotonic() + self._longest
        while True:
            while not self._queue.empty():
                steps.append(self._queue.get_nowait())
            seconds = until - time.monotonic()
            if not self._may_wait(steps) or seconds <= 0:
                return steps
            self._stirred.clear()
            timer = asyncio.get_running_loop().call_later(seconds, self._stirred.set)
            try:  # not wait_for: before Python 3.12 it may swallow a cancellation
                await self._stirred.wait()
            finally:
                timer.cancel()

    def _may_wait(self, steps: Sequence[Events]) -> bool:
        is_due = self._is_due(steps[-1].changes[-1].revision)
        return self._is_expecting and not is_due and len(steps) < MOST_WAITING and not any(map(self._is_urgent, steps))

    def done(self, steps: Sequence[Events]) -> None:
        """These steps are in force, or have failed."""
        for _ in steps:
            self._queue.task_done()

    async def empty(self, taking: asyncio.Future[None]) -> None:
        """Wait until everything is done, or until the task that takes it has ended: then the rest never is."""
        joined = asyncio.ensure_future(self._queue.join())
        try:
            await asyncio.wait((joined, taking), return_when=asyncio.FIRST_COMPLETED)
        finally:
            joined.cancel()
            await asyncio.gather(joined, return_exceptions=True)
