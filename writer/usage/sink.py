"""Usage in the writer daemon: what arrives within a moment is merged by one work of the group commit.

A batch is acknowledged when it is durable, so that a reporter whose daemon was killed sends it again.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from registry_store.errors import BusyError
from registry_store.usage import Batch, read_batch
from writer.usage.merge import UsageMerger

if TYPE_CHECKING:
    from writer.daemon import Daemon

PERIOD: Final = 0.5
"""Seconds from one merge to the next; a batch that comes later than that is merged at once."""
_HELD_BYTES: Final = 64 * 1024 * 1024

_log = logging.getLogger("dspy_registry")


def collect_usage(daemon: Daemon) -> None:
    """Let a daemon take in what reporters send."""
    sink = UsageSink(daemon)
    daemon.usage_sink = sink.take
    daemon.add_task(sink.run)
    daemon.add_section("usage", sink.status)


class UsageSink:
    """The batches that wait for the next merge. Belongs to the daemon's loop."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._merger = UsageMerger()
        self._waiting: list[tuple[Batch, asyncio.Future[int]]] = []
        self._held = 0
        self._arrived = asyncio.Event()
        self._batches = 0
        self._merges = 0

    def status(self) -> dict[str, int]:
        """Since the start: batches taken in, and the merges that took them."""
        return {"batches": self._batches, "merges": self._merges}

    def take(self, payload: bytes) -> asyncio.Future[int]:
        """Accept a batch; the future has the revision when it is durable. Raises InvalidArgumentError, BusyError."""
        if self._held > _HELD_BYTES:
            raise BusyError(f"the writer daemon holds {self._held} bytes of usage statistics, and takes no more.")
        batch = read_batch(payload)
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((batch, accepted))
        self._held += len(payload)
        self._arrived.set()
        return accepted

    async def run(self) -> None:
        """Merge, again and again; what waits at the end is merged before it ends."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                await self._merge()
                await asyncio.sleep(PERIOD)
        finally:
            await self._merge()

    async def _merge(self) -> None:
        waiting, self._waiting, self._held = self._waiting, [], 0
        if not waiting:
            return
        batches = [batch for batch, _ in waiting]
        try:
            done = await self._daemon.submit(lambda draft: self._merger.stage(draft, batches))
        except Exception as error:
            _log.warning("usage statistics could not be merged, and will be sent again: %s", error)
            for _, accepted in waiting:
                accepted.set_exception(error)
            return
        self._batches += len(batches)
        self._merges += 1
        for _, accepted in waiting:
            accepted.set_result(done.revision)
