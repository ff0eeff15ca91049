"""Taking programs of the cluster over: each is fetched and committed alone, before the versions that name it.

So however many a host has to catch up with, one of them is in memory at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TypeVar

from dspy_registry.registry_store.program_rows import cut
from dspy_registry.writer.cluster.following import MissingProgramsError
from dspy_registry.writer.cluster.program_store import ProgramStore
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.held_programs import hold

T = TypeVar("T")
_log = logging.getLogger("dspy_registry")


class ProgramMirror:
    """Belongs to the mirror. `lost` are programs that the cluster named and does not have whole."""

    def __init__(self, host: Host, programs: ProgramStore) -> None:
        self._host = host
        self._programs = programs
        self.lost: set[bytes] = set()

    async def supplied(self, commit: Callable[[], Awaitable[T]]) -> T:
        """Commit a stage, and first what it needs of programs. Raises CompactedError, ClusterUnavailableError."""
        while True:
            try:
                return await commit()
            except MissingProgramsError as missing:
                await self._take(missing.revisions)

    async def _take(self, revisions: Mapping[bytes, int]) -> None:
        for digest, revision in revisions.items():
            document = await self._programs.fetch(digest, revision)
            if document is None:
                _log.warning("the program %s is not in the cluster as it was published", digest.hex()[:12])
                self.lost.add(digest)
                continue
            pieces = await asyncio.to_thread(cut, document)
            await self._host.submit(partial(hold, digest=digest, pieces=pieces))
            del document, pieces
