"""Usage in the writer daemon: batches that arrive at nearly the same time are merged together, a part by each work.

A batch is acknowledged when it is durable. So a reporter whose daemon was killed sends it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final, NamedTuple, TypeAlias

from dspy_registry.registry_store.errors import BusyError, RegistryError
from dspy_registry.registry_store.reports import EncodedBatch, open_batch, read_batch, read_report
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.daemon.usage_merge import UsageMerger
from dspy_registry.writer.draft import Draft

PERIOD: Final = 0.5
"""Seconds from one merge to the next. A batch that comes later than that is merged at once."""
_HELD_BYTES: Final = 64 * 1024 * 1024
_BATCH_BYTES: Final = 1024  # of memory, for a batch beside its encoded bytes
_MERGED_BYTES: Final = 64 * 1024
"""Encoded bytes of the batches that are merged together, beside those of the first. So memory has a bound."""
_READ_AT_ONCE: Final = 8 * 1024
"""Encoded bytes. A larger batch is looked at outside the loop, when its turn has come."""

_log = logging.getLogger("dspy_registry")


def collect_usage(host: Host) -> None:
    """Let a daemon take in the batches of reporters."""
    sink = UsageSink(host)
    host.usage_sink = sink.take
    host.add_task(sink.run)
    host.add_section("usage", sink.status)


class _Opened(NamedTuple):
    """A batch that is being merged."""

    batch: EncodedBatch
    payload: bytes
    accepted: asyncio.Future[int]

    @property
    def held(self) -> int:
        """The bytes that it counts for."""
        return len(self.payload) + _BATCH_BYTES


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

    async def _readable(self, portion: list[_Waiting]) -> list[_Opened]:
        """The batches that can be read. The reporters of the others are told why not."""
        readable = []
        for payload, accepted in portion:
            try:
                batch = open_batch(payload)
                if len(payload) > _READ_AT_ONCE:
                    await asyncio.to_thread(_read_all, batch)
            except RegistryError as error:
                self._held -= len(payload) + _BATCH_BYTES
                accepted.set_exception(error)
            else:
                readable.append(_Opened(batch, payload, accepted))
        return readable

    async def _merge(self, portion: list[_Waiting]) -> None:
        """Merge batches, a part of them in each commit: others have their turns in between."""
        try:
            left = await self._readable(portion)
            while left:
                left = await self._merge_some(left)
        except asyncio.CancelledError:  # the daemon ends: `run` merges what waits
            self._waiting.extendleft(each for each in reversed(portion) if not each[1].done())
            raise
        except Exception as error:
            _log.warning("usage statistics could not be merged, and will be sent again: %s", error)
            for payload, accepted in portion:
                if not accepted.done():
                    self._held -= len(payload) + _BATCH_BYTES
                    accepted.set_exception(error)

    async def _merge_some(self, waiting: list[_Opened]) -> list[_Opened]:
        """Merge the first part of these batches. Returns those that are not merged as a whole then."""
        batches, whole = [each.batch for each in waiting], 0

        def stage(draft: Draft) -> None:  # again, when a group has failed
            nonlocal whole
            whole = self._merger.stage_some(draft, batches)

        done = await self._host.submit(stage, is_background=True)
        self._batches += whole
        self._merges += 1
        for each in waiting[:whole]:
            self._held -= each.held
            each.accepted.set_result(done.revision)
        return waiting[whole:]


def _read_all(batch: EncodedBatch) -> None:
    """Raises InvalidArgumentError for a report that is not one. Other threads have their turns in between."""
    for report in batch.reports:
        read_report(report)
