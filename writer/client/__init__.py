"""The clients of the writer daemon: the calls of `RegistryWriter`, from any process of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from writer.client.async_client import AsyncWriterClient
    from writer.client.client import WriterClient

__all__ = ["AsyncWriterClient", "WriterClient"]


def __getattr__(name: str) -> Any:
    # Each when it is asked for: the one for asyncio loads asyncio.
    if name == "WriterClient":
        from writer.client.client import WriterClient

        return WriterClient
    if name == "AsyncWriterClient":
        from writer.client.async_client import AsyncWriterClient

        return AsyncWriterClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
