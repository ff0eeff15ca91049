"""The daemon's socket and the connections to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dspy_registry.registry_store.protocol import DaemonStatus
from dspy_registry.writer.daemon import socket_file
from dspy_registry.writer.daemon.connection import Connection
from dspy_registry.writer.daemon.group_commit import GroupCommit
from dspy_registry.writer.daemon.limits import Limits

_RECEIVED_AT_ONCE: Final = 256 * 1024
_PROGRESS_SECONDS: Final = 0.25


class Server:
    """Listens at `path`, and holds what its connections have in common. Belongs to the loop's thread.

    `group` is a Unix group to admit, or None. `status` and `take_usage` answer the requests of that name.
    """

    def __init__(
        self,
        path: Path,
        queue: GroupCommit,
        limits: Limits,
        group: int | None,
        status: Callable[[], DaemonStatus],
        take_usage: Callable[[bytes], asyncio.Future[int] | None],
    ) -> None:
        self._path = path
        self.queue = queue
        self.limits = limits
        self.group = group
        self.status = status
        self.take_usage = take_usage
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.is_stopping = False
        # One for all connections: it is emptied before the next one is read.
        self.received = bytearray(_RECEIVED_AT_ONCE)
        self.last_closed = asyncio.Event()
        self._listening: asyncio.Server | None = None
        self._progress: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"Server({str(self._path)!r}, {len(self.connections)} connections)"

    async def listen(self) -> None:
        """Accept clients; also once more when somebody has removed the socket. Raises StoreError."""
        if self._listening is not None:
            self._listening.close()
        listener = socket_file.bind(self._path, self.group)
        self._listening = await self.loop.create_unix_server(lambda: Connection(self), sock=listener)

    @property
    def is_reachable(self) -> bool:
        """Whether the socket is where clients look for it."""
        return self._path.is_socket()

    def close_silent(self) -> None:
        """Close the connections that have kept the daemon waiting. Called from time to time."""
        now = self.loop.time()
        for connection in list(self.connections):
            connection.close_if_silent(now)

    def watch_progress(self) -> None:
        """Some request waits. Its client hears of it from time to time, until none waits any more."""
        if self._progress is None:
            self._progress = self.loop.call_later(_PROGRESS_SECONDS, self._tell_progress)

    def _tell_progress(self) -> None:
        self._progress = None
        if self.queue.is_hanging:
            self.watch_progress()
            return
        now = self.loop.time()
        waiting = [connection for connection in list(self.connections) if connection.tell_progress(now)]
        if waiting:
            self.watch_progress()

    def stop_accepting(self) -> None:
        """Take no more clients and no more requests; what was accepted is still answered."""
        self.is_stopping = True
        if self._listening is not None:
            socket_file.unlink(self._path)
            self._listening.close()
        for connection in self.connections:
            connection.stop_reading()

    async def close(self) -> None:
        """Close every connection once its answers are written, or after the time that limits give."""
        for connection in list(self.connections):
            connection.close()
        if self.connections:
            try:
                await asyncio.wait_for(self.last_closed.wait(), self.limits.farewell)
            except asyncio.TimeoutError:
                for connection in list(self.connections):
                    connection.abort()
