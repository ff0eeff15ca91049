"""One client's connection: from bytes to requests in the queue, and back from answers to bytes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

from registry_store import protocol, wire_errors
from registry_store.errors import BusyError, ProtocolError, RegistryError
from registry_store.protocol import (
    Answer,
    ApplyDiscovery,
    BatchProgress,
    Done,
    FrameReader,
    Part,
    ReadStatus,
    RegisterMany,
    ReportUsage,
    Status,
    Welcome,
    frame,
)
from writer.daemon import socket_file
from writer.daemon.answered import is_client_id
from writer.daemon.requests import BatchRequest, ClientRequest, SingleRequest, batch_request
from writer.parts import Parts

if TYPE_CHECKING:
    from writer.daemon.server import Server

_PROGRESS_SECONDS: Final = 0.25
_REFUSED_AT_A_TIME: Final = 64

_log = logging.getLogger("dspy_registry")


class Connection(asyncio.BufferedProtocol):
    """One client's connection."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._frames = FrameReader(protocol.MAX_HELLO_BYTES)
        self._client = b""
        self._parts = Parts(server.queue, server.limits)
        self._is_closing = False
        self._unanswered = 0
        self._size = 0  # of the message at hand
        self._refusal: RegistryError | None = None
        self._heard = server.loop.time()
        self._handlers: dict[type, Callable[[Any], None]] = {
            Part: self._take_part,
            RegisterMany: self._take_batch,
            ApplyDiscovery: self._take_batch,
            ReadStatus: self._tell_status,
            ReportUsage: self._take_usage,
        }

    def __repr__(self) -> str:
        return f"Connection(client={self._client.hex() or None})"

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Admit the client, or have it told why not once it has greeted: earlier it would not listen."""
        self._transport = cast("asyncio.Transport", transport)
        server, limits = self._server, self._server.limits
        server.connections.add(self)
        server.last_closed.clear()
        peer: socket.socket = transport.get_extra_info("socket")
        self._refusal = socket_file.refusal(peer, server.group)
        if self._refusal is None and len(server.connections) > limits.connections:
            self._refusal = BusyError(f"the writer daemon has {limits.connections} connections, and takes no more.")
        if server.is_stopping or len(server.connections) > limits.connections + _REFUSED_AT_A_TIME:
            self.close()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where asyncio puts what it receives."""
        return self._server.received

    def buffer_updated(self, nbytes: int) -> None:
        """Take in every message that is complete."""
        self._heard = self._server.loop.time()
        data = bytes(memoryview(self._server.received)[:nbytes])
        try:
            for payload in self._frames.feed(data):
                if self._is_closing:
                    return
                self._take(payload)
        except ProtocolError as error:
            self.refuse(error)

    def pause_writing(self) -> None:
        """A client that does not read its answers sends no more requests."""
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        """It has read them."""
        if not self._is_closing and not self._server.is_stopping:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """Forget the connection. What it asked for takes its course."""
        self._is_closing = True
        self._parts.drop()
        self._server.connections.discard(self)
        if not self._server.connections:
            self._server.last_closed.set()

    # Ending it

    def close_if_silent(self, now: float) -> None:
        """Close a connection that has kept the daemon waiting. An idle one without a word: its client expects none."""
        silence = now - self._heard
        limits = self._server.limits
        if not self._client and silence > limits.handshake:
            self.refuse(ProtocolError(f"no greeting within {limits.handshake:g} s."))
        elif self._frames.is_inside and silence > limits.unfinished:
            self.refuse(ProtocolError(f"a message was begun and not continued within {limits.unfinished:g} s."))
        elif silence > limits.idle and not self._unanswered:
            self.close()

    def refuse(self, error: RegistryError) -> None:
        """Say what is wrong with the connection as a whole, and close it."""
        if not self._is_closing:
            _log.info("connection refused: %s", error)
            self._send(wire_errors.pack(0, error))
            self.close()

    def stop_reading(self) -> None:
        """Take no more requests from it."""
        if not self._is_closing:
            self._transport.pause_reading()

    def close(self) -> None:
        """Close it when its answers are written."""
        self._is_closing = True
        self._transport.close()

    def abort(self) -> None:
        """Close it now."""
        self._transport.abort()

    # Messages

    def _take(self, payload: bytes) -> None:
        if not self._client:
            self._greet(payload)
            return
        self._size = len(payload)
        try:
            message = protocol.decode_request(payload)
        except protocol.UNREADABLE as error:
            raise ProtocolError(f"a message is not understood: {error}.") from error
        handler = self._handlers.get(type(message), self._take_change)
        try:
            handler(message)
        except ProtocolError:
            raise
        except RegistryError as error:
            self._send(wire_errors.pack(message.id, error))

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
        self._send(Welcome(protocol.VERSION, os.getpid()))

    def _take_change(self, message: Any) -> None:
        self._server.queue.refuse_if_full()
        self._accept(SingleRequest(self._client, message, self._reply, self._size))

    def _take_part(self, message: Part) -> None:
        self._parts.add(message.modules)

    def _take_batch(self, message: RegisterMany | ApplyDiscovery) -> None:
        self._server.queue.refuse_if_full()
        modules, held = self._parts.take(message.count)
        request = batch_request(self._client, message, modules, self._reply, held)
        self._accept(request)
        self._tell_progress(request, 0)

    def _accept(self, request: ClientRequest) -> None:
        self._unanswered += 1
        self._server.queue.put(request)

    def _tell_progress(self, request: BatchRequest, told: int) -> None:
        """Again and again until it is answered: a client's time limit is for silence."""
        if request.is_settled or self._is_closing:
            return
        if request.looked_at != told:
            told = request.looked_at
            self._send(BatchProgress(request.id, told, request.count))
        self._server.loop.call_later(_PROGRESS_SECONDS, self._tell_progress, request, told)

    def _tell_status(self, message: ReadStatus) -> None:
        self._send(Status(message.id, self._server.status()))

    def _take_usage(self, message: ReportUsage) -> None:
        durable = self._server.take_usage(message.batch)
        if durable is None:
            self._send(Done(message.id, self._server.queue.revision))
        else:
            durable.add_done_callback(lambda merged: self._acknowledge_usage(message.id, merged))

    def _acknowledge_usage(self, request: int, merged: asyncio.Future[int]) -> None:
        error: BaseException | None = asyncio.CancelledError() if merged.cancelled() else merged.exception()
        self._send(wire_errors.pack(request, error) if error else Done(request, merged.result()))

    def _reply(self, request: ClientRequest, answer: Answer) -> None:
        self._unanswered -= 1
        self._send(answer)

    def _send(self, answer: Answer | Welcome) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame(answer))
