"""One client's connection: from bytes to requests in the queue, and back from answers to bytes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, cast

from dspy_registry.registry_store import protocol, wire_errors
from dspy_registry.registry_store.errors import BusyError, ProtocolError, RegistryError
from dspy_registry.registry_store.protocol import (
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
from dspy_registry.writer.daemon import socket_file
from dspy_registry.writer.daemon.batch_upload import Parts
from dspy_registry.writer.daemon.reply_cache import is_client_id
from dspy_registry.writer.daemon.requests import ClientRequest, SingleRequest, UsageReport, batch_request

if TYPE_CHECKING:
    from dspy_registry.writer.daemon.server import Server

_SIGN_OF_LIFE: Final = 1.0  # seconds from one to the next, of a request of which there is nothing new to say
_REFUSED_AT_A_TIME: Final = 64

_log = logging.getLogger("dspy_registry")


class Connection(asyncio.BufferedProtocol):
    """One client's connection.

    It takes in messages while their answers can go out and fewer than a window of them is unanswered; until then what
    has been received is held, and no more is received. So what a connection takes of memory has a bound.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._transport: asyncio.Transport
        self._frames = FrameReader(protocol.MAX_HELLO_BYTES)
        self._client = b""
        self._parts = Parts(server.queue, server.limits)
        self._is_closing = False
        self._is_write_paused = False  # the client does not read its answers
        self._is_held_up = False  # messages may be held that are not taken in yet
        # Requests, each with when its client last heard of it and how far it then was.
        self._unanswered: dict[ClientRequest | UsageReport, tuple[float, int]] = {}
        self._size = 0  # of the message at hand
        self._refusal: RegistryError | None = None
        self._heard = self._opened = server.loop.time()
        self._frame_began: float | None = None
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
        """Take in the messages that are complete."""
        self._heard = self._server.loop.time()
        self._take_in(bytes(memoryview(self._server.received)[:nbytes]))

    def pause_writing(self) -> None:
        """A client that does not read its answers sends no more requests."""
        self._is_write_paused = True
        self._hold_up()

    def resume_writing(self) -> None:
        """It has read them."""
        self._is_write_paused = False
        self._go_on()

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
        limits = self._server.limits
        if not self._client and now - self._opened > limits.handshake:
            self.refuse(ProtocolError(f"no greeting within {limits.handshake:g} s."))
        elif self._frame_began is not None and now - self._frame_began > limits.unfinished:
            self.refuse(ProtocolError(f"a message was begun and not continued to its end in {limits.unfinished:g} s."))
        elif now - self._heard > limits.idle and not self._unanswered:
            if self._is_write_paused:
                self.abort()  # who has not read for so long would keep it open for ever
            else:
                self.close()

    def tell_progress(self, now: float) -> bool:
        """Say of each unanswered request how far it is, or that it is not forgotten; False when there is none.

        A client's time limit is for silence, and its request may be behind others that take long.
        """
        for request, (heard_at, looked_at) in list(self._unanswered.items()):
            if self._is_write_paused:
                break
            if request.looked_at != looked_at or now - heard_at >= _SIGN_OF_LIFE:
                self._unanswered[request] = (now, request.looked_at)
                self._send(BatchProgress(request.id, request.looked_at, request.count))
        return bool(self._unanswered)

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

    @property
    def _may_send(self) -> bool:
        """Whether the client may have its next message taken in."""
        is_open = not self._is_closing and not self._server.is_stopping
        return is_open and not self._is_write_paused and len(self._unanswered) < protocol.WINDOW

    def _take_in(self, data: bytes) -> None:
        """Take in what is complete with `data`, while the client may send."""
        was_inside = self._frame_began is not None
        try:
            with closing(self._frames.feed(data)) as payloads:
                for payload in payloads:
                    was_inside = False
                    self._take(payload)
                    if not self._may_send:
                        self._hold_up()
                        return
        except ProtocolError as error:
            self.refuse(error)
        if not self._frames.is_inside:
            self._frame_began = None
        elif not was_inside:
            self._frame_began = self._server.loop.time()

    def _hold_up(self) -> None:
        """Take in nothing more for now. The client is not to blame for a message that is not complete meanwhile."""
        self._is_held_up = True
        self._frame_began = None
        self._transport.pause_reading()

    def _go_on(self) -> None:
        """Take in what was held, then receive again."""
        if self._is_held_up and self._may_send:
            self._is_held_up = False
            self._take_in(b"")
            if not self._is_held_up and not self._is_closing:
                self._transport.resume_reading()

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

    def _accept(self, request: ClientRequest) -> None:
        self._await(request)
        self._server.queue.put(request)

    def _await(self, request: ClientRequest | UsageReport) -> None:
        self._unanswered[request] = (self._heard, 0)
        self._server.watch_progress()

    def _tell_status(self, message: ReadStatus) -> None:
        self._send(Status(message.id, self._server.status()))

    def _take_usage(self, message: ReportUsage) -> None:
        durable = self._server.take_usage(message.batch)
        if durable is None:
            self._send(Done(message.id, self._server.queue.revision))
        else:
            report = UsageReport(message.id)
            self._await(report)
            durable.add_done_callback(lambda merged: self._acknowledge_usage(report, merged))

    def _acknowledge_usage(self, report: UsageReport, merged: asyncio.Future[int]) -> None:
        error: BaseException | None = asyncio.CancelledError() if merged.cancelled() else merged.exception()
        self._reply(report, wire_errors.pack(report.id, error) if error else Done(report.id, merged.result()))

    def _reply(self, request: ClientRequest | UsageReport, answer: Answer) -> None:
        del self._unanswered[request]
        self._send(answer)
        self._go_on()

    def _send(self, answer: Answer | Welcome) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame(answer))
