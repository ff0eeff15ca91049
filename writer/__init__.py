"""The writing side: the one process that changes a registry, and what feeds it. Never imports readers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from writer.registry_writer import RegistryWriter

if TYPE_CHECKING:
    from writer.client import AsyncWriterClient, WriterClient

__all__ = ["AsyncWriterClient", "RegistryWriter", "WriterClient"]


def __getattr__(name: str) -> Any:
    # The clients load the socket machinery, which an embedded writer does without.
    if name in ("WriterClient", "AsyncWriterClient"):
        from writer import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
