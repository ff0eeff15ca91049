"""The daemon's socket and its connections: from bytes to messages, and from answers to bytes."""

from __future__ import annotations

import asyncio
import math
import os
import socket
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from dspy_registry.registry_store import protocol, wire_errors
from dspy_registry.registry_store.errors import BusyError, ProtocolError, RegistryError
from dspy_registry.registry_store.protocol import FrameReader, Welcome
from dspy_registry.writer.daemon import roles, socket_file
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.change_lines import LineBudget
from dspy_registry.writer.daemon.outgoing import Outgoing
from dspy_registry.writer.daemon.pace import RefusalPace
from dspy_registry.writer.daemon.reply_cache import is_client_id
from dspy_registry.writer.daemon.service import Requests, Service

_REFUSED_AT_A_TIME: Final = 64
_RECEIVED_AT_ONCE: Final = 256 * 1024
_PROGRESS_SECONDS: Final = 0.25


@dataclass(eq=False)
class Connections:
    """The open connections of a server. Belongs to the loop's thread."""

    open: set[Connection] = field(default_factory=set)
    last_closed: asyncio.Event = field(default_factory=asyncio.Event)
    refusals: LineBudget = field(default_factory=lambda: LineBudget(20, 10.0))
    refusal_pace: RefusalPace = field(default_factory=RefusalPace)
    received: bytearray = field(default_factory=lambda: bytearray(_RECEIVED_AT_ONCE))
    """One buffer for all connections: it is emptied before the next one is read."""

    def problem(self, newcomer: Connection, bounds: Bounds, now: float) -> BusyError | None:
        """Why there is no place for a connection that was just opened. None: there is, perhaps a freed one.

        A place is freed by the connection that was silent for longest, of the user who has most.
        """
        if len(self.open) <= bounds.connections:
            return None
        counts = Counter(connection.user for connection in self.open)
        idle = [one for one in self.open if one is not newcomer and one.idle_since(now) >= bounds.spared]
        if idle:
            max(idle, key=lambda one: (counts[one.user], one.idle_since(now))).abort()
            return None
        is_small = counts[newcomer.user] <= bounds.connections // 8
        if is_small and len(self.open) <= bounds.connections + bounds.connections // 8:
            return None
        return BusyError(f"the writer daemon has {bounds.connections} connections, and takes no more.")


class Connection(asyncio.BufferedProtocol):
    """One client's connection.

    It takes in messages while the client reads its answers and less than a window of requests is unanswered. Otherwise
    it keeps what it has received, and receives no more. So its memory has a bound.
    """

    def __init__(self, service: Service, connections: Connections) -> None:
        self._service = service
        self._connections = connections
        self._transport: asyncio.Transport
        self._frames = FrameReader(protocol.MAX_HELLO_BYTES)
        self.user = -1
        self._client = b""
        self._outgoing = Outgoing()
        self._requests = Requests(service, self._outgoing, self._resume)
        self._is_closing = False
        self._is_refused = False
        self._is_write_paused = False  # the client does not read its answers
        self._is_paused = False  # received messages may wait to be taken in
        self._refusal: RegistryError | None = None
        self._heard = self._opened = service.loop.time()
        self._frame_began: float | None = None

    def __repr__(self) -> str:
        return f"Connection(client={self._client.hex() or None})"

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the client, or refuse it after its greeting, because it reads nothing before."""
        self._transport = cast("asyncio.Transport", transport)
        bounds, count = self._service.bounds, len(self._connections.open) + 1
        self._connections.open.add(self)
        self._connections.last_closed.clear()
        peer: socket.socket = transport.get_extra_info("socket")
        self._outgoing.begin(self._transport, peer.fileno())
        by = self._requests.by = roles.process_of(peer)
        self._requests.role = roles.role_of(peer, self._service.groups)
        self._refusal = roles.refusal(peer, self._requests.role)
        self.user = by[0] if by else -1
        if self._refusal is None:
            self._refusal = self._connections.problem(self, bounds, self._service.loop.time())
        most = bounds.connections + bounds.connections // 8
        if self._service.is_stopping or count > most + _REFUSED_AT_A_TIME:
            self.close()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where asyncio puts what it receives."""
        return self._connections.received

    def buffer_updated(self, nbytes: int) -> None:
        """Take in the messages that are complete."""
        self._heard = self._service.loop.time()
        self._take_in(bytes(memoryview(self._connections.received)[:nbytes]))

    def pause_writing(self) -> None:
        """A client that does not read its answers sends no more requests."""
        self._is_write_paused = True
        self._pause()

    def resume_writing(self) -> None:
        """The client has read its answers."""
        self._is_write_paused = False
        self._resume()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection. Its accepted requests are still carried out."""
        self._is_closing = True
        self._outgoing.end()
        self._requests.drop_upload()
        self._connections.open.discard(self)
        if not self._connections.open:
            self._connections.last_closed.set()

    # Ending it

    def idle_since(self, now: float) -> float:
        """For how many seconds nothing was expected of the daemon. -1: something is. Infinite: it is refused anyway."""
        if self._is_refused:
            return math.inf
        is_at_work = self._is_closing or self._requests.is_at_work or self._frame_began is not None
        return -1.0 if is_at_work else now - self._heard

    def close_if_silent(self, now: float) -> None:
        """Close one that has kept the daemon waiting. An idle client waits for nothing and gets no reason."""
        bounds = self._service.bounds
        if not self._client and now - self._opened > bounds.handshake:
            self.refuse(ProtocolError(f"no greeting within {bounds.handshake:g} s."))
        elif self._frame_began is not None and now - self._frame_began > bounds.unfinished:
            self.refuse(ProtocolError(f"a message was begun but not complete within {bounds.unfinished:g} s."))
        elif now - self._heard > bounds.idle and not self._requests.unanswered:
            if self._is_write_paused:
                self.abort()  # a client that does not read would keep it open for ever
            else:
                self.close()

    def tell_progress(self, now: float) -> bool:
        """See `Requests.tell_progress`."""
        return self._requests.tell_progress(now, lambda: not self._is_write_paused)

    def refuse(self, error: RegistryError) -> None:
        """Tell the client what is wrong with the whole connection, and close it. Many of a user wait for each other."""
        if not self._is_closing:
            self._connections.refusals.info("connection refused: %s", error)
            self.stop_reading()
            self._is_closing = self._is_refused = True
            loop = self._service.loop
            wait = self._connections.refusal_pace.wait(self.user, loop.time())
            if wait:
                loop.call_later(wait, self._tell_refusal, error)
            else:
                self._tell_refusal(error)

    def _tell_refusal(self, error: RegistryError) -> None:
        self._outgoing.send(wire_errors.pack(0, error))
        self.close()

    def stop_reading(self) -> None:
        """Take no more requests from this client."""
        if not self._is_closing:
            self._transport.pause_reading()

    def close(self) -> None:
        """Close it when its answers are written."""
        self._is_closing = True
        self._transport.close()

    def abort(self) -> None:
        """Close it now."""
        self._is_closing = True
        self._transport.abort()

    # Messages

    @property
    def _may_send(self) -> bool:
        """Whether the client's next message may be taken in."""
        is_open = not self._is_closing and not self._service.is_stopping
        return is_open and not self._is_write_paused and self._requests.unanswered < protocol.WINDOW

    def _take_in(self, data: bytes) -> None:
        """Take in the messages that `data` completes, while the client may send."""
        was_inside = self._frame_began is not None
        try:
            with closing(self._frames.feed(data)) as payloads:
                for payload in payloads:
                    was_inside = False
                    self._take(payload)
                    if not self._may_send:
                        self._pause()
                        return
        except ProtocolError as error:
            self.refuse(error)
        if not self._frames.is_inside:
            self._frame_began = None
        elif not was_inside:
            self._frame_began = self._service.loop.time()

    def _pause(self) -> None:
        """Take in nothing more for now. An incomplete message is not the client's fault meanwhile."""
        self._is_paused = True
        self._frame_began = None
        self._transport.pause_reading()

    def _resume(self) -> None:
        """Take in what was received meanwhile, then receive again."""
        if self._is_paused and self._may_send:
            self._is_paused = False
            self._take_in(b"")
            if not self._is_paused and not self._is_closing:
                self._transport.resume_reading()

    def _take(self, payload: bytes) -> None:
        if self._client:
            self._requests.take(self._client, payload, self._heard)
        else:
            self._greet(payload)

    def _greet(self, payload: bytes) -> None:
        if self._refusal is not None:
            self.refuse(self._refusal)
            return
        try:
            hello = protocol.decode_hello(payload)
        except protocol.UNREADABLE as error:
            raise ProtocolError(f"the greeting is not understood: {error}.") from error
        if hello.version != protocol.VERSION:
            raise protocol.version_mismatch(hello.version, protocol.VERSION)
        if not is_client_id(hello.client):
            raise ProtocolError(f"a client's id has {protocol.CLIENT_ID_BYTES} bytes, not {len(hello.client)}.")
        self._client = hello.client
        self._frames.limit = protocol.MAX_FRAME_BYTES
        self._outgoing.send(Welcome(protocol.VERSION, os.getpid()))


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
        """Close each connection when its answers are written, or when `Bounds.farewell` has passed."""
        for connection in list(self._connections.open):
            connection.close()
        if self._connections.open:
            try:
                await asyncio.wait_for(self._connections.last_closed.wait(), self._service.bounds.farewell)
            except asyncio.TimeoutError:
                for connection in list(self._connections.open):
                    connection.abort()
