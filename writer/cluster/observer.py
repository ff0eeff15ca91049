"""A part of the daemon that keeps some watched keys in memory alone: who is alive, which circuits are open, who leads.

The mirror lists its keys whenever a watch begins, then tells of each change. A watch that begins again shows changes
that the list already had; `Observer` leaves those out.
"""

from __future__ import annotations

from collections.abc import Sequence

from dspy_registry.writer.cluster.engine import Engine, KeyValue


class Observer:
    """Belongs to the daemon's loop. `prefix` is that of its keys. Subclasses define `take_all` and `take`."""

    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self._listed_at = 0  # the revision of the last list

    async def list(self, engine: Engine) -> int:
        """Read all keys again. Returns the revision at which they were read."""
        items: list[KeyValue] = []
        after, revision, more = b"", 0, True
        while more:
            page = await engine.range_at(self.prefix, after, revision)
            revision, more = page.revision, page.more
            items += page.items
            after = page.items[-1].key if page.items else after
        self._listed_at = revision
        await self.take_all(items)
        return revision

    def see(self, change: KeyValue) -> None:
        """A change of a watch, of whichever key."""
        if change.key.startswith(self.prefix) and change.revision > self._listed_at:
            self.take(change)

    async def take_all(self, items: Sequence[KeyValue]) -> None:
        """All that there is now. It must raise nothing but what an engine raises."""
        raise NotImplementedError

    def take(self, change: KeyValue) -> None:
        """A key was put, or deleted. It must raise nothing."""
        raise NotImplementedError
