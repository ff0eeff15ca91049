"""Usage in the writer daemon: batches that arrive at nearly the same time are merged by one work of the group commit.

A batch is acknowledged when it is durable. So a reporter whose daemon was killed sends it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, TypeAlias

from dspy_registry.registry_store.errors import BusyError, RegistryError
from dspy_registry.registry_store.reports import read_batch
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.daemon.usage_merge import UsageMerger

PERIOD: Final = 0.5
"""Seconds from one merge to the next. A batch that comes later than that is merged at once."""
_HELD_BYTES: Final = 64 * 1024 * 1024
_BATCH_BYTES: Final = 1024  # of memory, for a batch beside its encoded bytes
_MERGED_BYTES: Final = 64 * 1024
"""Encoded bytes that one merge takes in, beside those of its first batch. Other requests wait for a merge that is
under way, and memory has a bound: decoded they are some 25 times as large."""
_READ_AT_ONCE: Final = 8 * 1024
"""Encoded bytes. A larger batch is looked at outside the loop, when its turn has come."""

_log = logging.getLogger("dspy_registry")


def collect_usage(host: Host) -> None:
    """Let a daemon take in the batches of reporters."""
    sink = UsageSink(host)
    host.usage_sink = sink.take
    host.add_task(sink.run)
    host.add_section("usage", sink.status)


_Waiting: TypeAlias = "tuple[bytes, asyncio.Future[int]]"  # an encoded batch, and the future that waits for its merge


class UsageSink:
    """The batches that wait to be merged, encoded until then. Belongs to the daemon's loop."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._merger = UsageMerger()
        self._waiting: deque[_Waiting] = deque()
        self._held = 0
        self._arrived = asyncio.Event()
        self._batches = 0
        self._merges = 0

    def status(self) -> dict[str, int]:
        """Since the start: batches taken in, and the merges that took them."""
        return {"batches": self._batches, "merges": self._merges}

    def take(self, payload: bytes) -> asyncio.Future[int]:
        """Accept a batch. The future has the revision when it is durable. It, or this, raises InvalidArgumentError.

        Raises BusyError.
        """
        if self._held > _HELD_BYTES:
            raise BusyError(f"the writer daemon holds {self._held} bytes of usage statistics, and takes no more.")
        if len(payload) <= _READ_AT_ONCE:
            read_batch(payload)
        accepted: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((payload, accepted))
        self._held += len(payload) + _BATCH_BYTES
        self._arrived.set()
        return accepted

    async def run(self) -> None:
        """Merge until cancelled, then merge what still waits."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                await self._merge_all()
                await asyncio.sleep(PERIOD)
        finally:
            await self._merge_all()

    async def _merge_all(self) -> None:
        for _ in range(len(self._waiting)):  # at most: batches that come meanwhile wait for the next merge
            if self._waiting:
                await self._merge(self._portion())

    def _portion(self) -> list[_Waiting]:
        """The batches of the next merge. It is bounded, so that other requests do not wait and memory has a bound."""
        portion = [self._waiting.popleft()]
        size = len(portion[0][0])
        while self._waiting and size + len(self._waiting[0][0]) <= _MERGED_BYTES:
            portion.append(self._waiting.popleft())
            size += len(portion[-1][0])
        return portion

    async def _readable(self, portion: list[_Waiting]) -> list[_Waiting]:
        """The batches that can be read. The reporters of the others are told why not."""
        readable = []
        for payload, accepted in portion:
            try:
                if len(payload) > _READ_AT_ONCE:
                    await asyncio.to_thread(read_batch, payload)
            except RegistryError as error:
                self._held -= len(payload) + _BATCH_BYTES
                accepted.set_exception(error)
            else:
                readable.append((payload, accepted))
        return readable

    async def _merge(self, portion: list[_Waiting]) -> None:
        portion = await self._readable(portion)
        payloads = [payload for payload, _ in portion]
        try:
            # Decoded one at a time, and once more when a group that failed is staged again.
            done = await self._host.submit(lambda draft: self._merger.stage(draft, map(read_batch, payloads)))
        except Exception as error:
            _log.warning("usage statistics could not be merged, and will be sent again: %s", error)
            for _, accepted in portion:
                accepted.set_exception(error)
            return
        finally:
            self._held -= sum(len(payload) + _BATCH_BYTES for payload in payloads)
        self._batches += len(portion)
        self._merges += 1
        for _, accepted in portion:
            accepted.set_result(done.revision)
