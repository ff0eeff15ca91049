"""The daemon's socket and the connections to it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from dspy_registry.writer.daemon import socket_file
from dspy_registry.writer.daemon.connection import Connection, Connections
from dspy_registry.writer.daemon.service import Service

_PROGRESS_SECONDS: Final = 0.25


class Server:
    """Listens at `path` for clients of a service. Belongs to the loop's thread."""

    def __init__(self, path: Path, service: Service) -> None:
        self._path = path
        self._service = service
        self._connections = Connections()
        self._listening: asyncio.Server | None = None
        self._progress: asyncio.TimerHandle | None = None
        service.watch_progress = self._watch_progress

    def __repr__(self) -> str:
        return f"Server({str(self._path)!r}, {self.connection_count} connections)"

    async def listen(self) -> None:
        """Accept clients. Call it again when the socket was removed. Raises StoreError."""
        if self._listening is not None:
            self._listening.close()
        listener = socket_file.bind(self._path, self._service.groups.of_files)
        loop = self._service.loop
        self._listening = await loop.create_unix_server(
            lambda: Connection(self._service, self._connections), sock=listener
        )

    @property
    def connection_count(self) -> int:
        """How many connections are open."""
        return len(self._connections.open)

    @property
    def is_reachable(self) -> bool:
        """Whether the socket is where clients look for it."""
        return self._path.is_socket()

    def close_silent(self) -> None:
        """Close the connections that have kept the daemon waiting. Called from time to time."""
        now = self._service.loop.time()
        for connection in list(self._connections.open):
            connection.close_if_silent(now)

    def _watch_progress(self) -> None:
        """A request waits. Its client is told its progress from time to time, until no request waits."""
        if self._progress is None:
            self._progress = self._service.loop.call_later(_PROGRESS_SECONDS, self._tell_progress)

    def _tell_progress(self) -> None:
        self._progress = None
        if self._service.queue.is_hanging:
            self._watch_progress()
            return
        now = self._service.loop.time()
        waiting = [connection for connection in list(self._connections.open) if connection.tell_progress(now)]
        if waiting:
            self._watch_progress()

    def stop_accepting(self) -> None:
        """Take no more clients and no more requests. Accepted requests are still answered."""
        self._service.is_stopping = True
        if self._listening is not None:
            socket_file.unlink(self._path)
            self._listening.close()
        for connection in self._connections.open:
            connection.stop_reading()

    async def close(self) -> None:
        """Close each connection when its answers are written, or when `Limits.farewell` has passed."""
        for connection in list(self._connections.open):
            connection.close()
        if self._connections.open:
            try:
                await asyncio.wait_for(self._connections.last_closed.wait(), self._service.limits.farewell)
            except asyncio.TimeoutError:
                for connection in list(self._connections.open):
                    connection.abort()
