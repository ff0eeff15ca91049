"""One connection to the daemon under asyncio."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Protocol, cast

from dspy_registry.registry_store import protocol, wire_errors
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.protocol import Answer, Failed, FrameReader, Hello, frame
from dspy_registry.writer.client.session import not_permitted


class Listener(Protocol):
    """Receives a link's answers, and learns of its end."""

    def answered(self, answer: Answer) -> None:
        """An answer has come. A RegistryError raised here ends the link."""

    def lost(self, link: Link, error: Exception) -> None:
        """The link has ended."""


class Link(asyncio.Protocol):
    """A connection. `greeted` is done when the daemon has admitted or refused it. `lost` is done at its end."""

    def __init__(self, client: bytes, listener: Listener) -> None:
        loop = asyncio.get_running_loop()
        self._client = client
        self._listener = listener
        self._frames = FrameReader(protocol.MAX_ANSWER_BYTES)
        self._failure: Exception | None = None
        self.transport: asyncio.Transport
        self.greeted: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()

    def __repr__(self) -> str:
        return f"Link({'lost' if self.lost.done() else 'open'})"

    def close(self) -> None:
        """Close it. `lost` is done soon after."""
        self.transport.close()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet the daemon."""
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(frame(Hello(protocol.VERSION, self._client)))

    def data_received(self, data: bytes) -> None:
        """Read every answer that is complete."""
        try:
            for payload in self._frames.feed(data):
                if self.greeted.done():
                    self._listener.answered(protocol.read_answer(payload))
                else:
                    self._welcomed(protocol.read_welcome(payload))
        except RegistryError as error:
            self._failure = error
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        """Tell the listener and the tasks that wait."""
        failure = self._failure or error or ConnectionResetError("the daemon closed the connection")
        if not self.greeted.done():
            self.greeted.set_exception(failure)
        self.lost.set_result(None)
        self._listener.lost(self, failure)

    def _welcomed(self, welcome: protocol.Welcome | Failed) -> None:
        if isinstance(welcome, Failed):
            raise wire_errors.unpack(welcome)
        if welcome.version != protocol.VERSION:
            raise protocol.version_mismatch(protocol.VERSION, welcome.version)
        self.greeted.set_result(None)


async def open_link(path: Path, client: bytes, listener: Listener) -> Link | None:
    """A connection that the daemon has not admitted yet. None: no daemon listens. Raises StorePermissionError."""
    loop = asyncio.get_running_loop()
    try:
        _, link = await loop.create_unix_connection(lambda: Link(client, listener), os.fspath(path))
    except PermissionError as error:
        raise not_permitted(path) from error
    except OSError:
        return None
    return link


async def is_greeted(link: Link) -> bool:
    """Wait until the daemon has admitted the link. False: it was lost. Raises the daemon's refusal."""
    try:
        await link.greeted
    except RegistryError:
        raise
    except OSError:
        return False
    except asyncio.CancelledError:
        link.close()
        raise
    return not link.lost.done()
