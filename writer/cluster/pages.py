"""Reading all keys with a prefix page by page, at one revision: the next page is on its way while one is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from dspy_registry.writer.cluster.engine import Engine, Page


async def pages(engine: Engine, prefix: bytes, limit: int) -> AsyncGenerator[Page, None]:
    """Pages of up to `limit` keys, all as of the revision of the first. It asks for at most one ahead.

    Close it (`aclosing`), so that no request is left behind. Raises CompactedError, ClusterUnavailableError.
    """
    page = await engine.range_at(prefix, limit=limit)
    while page.more and page.items:
        coming = asyncio.ensure_future(engine.range_at(prefix, page.items[-1].key, page.revision, limit=limit))
        try:
            yield page
            page = await coming
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
    yield page
