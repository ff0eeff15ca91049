"""One client's connection: from bytes to requests in the queue, and from answers to bytes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, cast

from dspy_registry.registry_store import protocol, wire_errors
from dspy_registry.registry_store.errors import BusyError, ProtocolError, RegistryError
from dspy_registry.registry_store.protocol import (
    Answer,
    ApplyDiscovery,
    BatchProgress,
    DaemonStatus,
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
from dspy_registry.writer.daemon.batch_upload import BatchUpload
from dspy_registry.writer.daemon.group_commit import GroupCommit
from dspy_registry.writer.daemon.limits import Limits
from dspy_registry.writer.daemon.reply_cache import is_client_id
from dspy_registry.writer.daemon.requests import ClientRequest, SingleRequest, UsageReport, batch_request

_SIGN_OF_LIFE: Final = 1.0  # seconds between signs of life for a request that makes no progress
_REFUSED_AT_A_TIME: Final = 64
_RECEIVED_AT_ONCE: Final = 256 * 1024

_log = logging.getLogger("dspy_registry")


@dataclass(eq=False)
class Service:
    """What all connections of the daemon share. Belongs to the loop's thread.

    `group` is a Unix group to admit, or None. `status` and `take_usage` answer the requests of that name;
    `watch_progress` is told when a request begins to wait.
    """

    queue: GroupCommit
    limits: Limits
    group: int | None
    status: Callable[[], DaemonStatus]
    take_usage: Callable[[bytes], asyncio.Future[int] | None]
    watch_progress: Callable[[], None] = lambda: None
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    connections: set[Connection] = field(default_factory=set)
    is_stopping: bool = False
    last_closed: asyncio.Event = field(default_factory=asyncio.Event)
    received: bytearray = field(default_factory=lambda: bytearray(_RECEIVED_AT_ONCE))
    """One buffer for all connections: it is emptied before the next one is read."""


class Connection(asyncio.BufferedProtocol):
    """One client's connection.

    It takes in messages while the client reads its answers and less than a window of requests is unanswered. Otherwise
    it keeps what it has received, and receives no more. So its memory has a bound.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._transport: asyncio.Transport
        self._frames = FrameReader(protocol.MAX_HELLO_BYTES)
        self._client = b""
        self._upload = BatchUpload(service.queue, service.limits)
        self._is_closing = False
        self._is_write_paused = False  # the client does not read its answers
        self._is_paused = False  # received messages may wait to be taken in
        # For each request: when its client was last told of it, and the progress told then.
        self._unanswered: dict[ClientRequest | UsageReport, tuple[float, int]] = {}
        self._size = 0  # of the message at hand
        self._refusal: RegistryError | None = None
        self._heard = self._opened = service.loop.time()
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
        """Admit the client, or refuse it once it has greeted: before that it does not read."""
        self._transport = cast("asyncio.Transport", transport)
        service, limits = self._service, self._service.limits
        service.connections.add(self)
        service.last_closed.clear()
        peer: socket.socket = transport.get_extra_info("socket")
        self._refusal = socket_file.refusal(peer, service.group)
        if self._refusal is None and len(service.connections) > limits.connections:
            self._refusal = BusyError(f"the writer daemon has {limits.connections} connections, and takes no more.")
        if service.is_stopping or len(service.connections) > limits.connections + _REFUSED_AT_A_TIME:
            self.close()

    def get_buffer(self, sizehint: int) -> bytearray:
        """Where asyncio puts what it receives."""
        return self._service.received

    def buffer_updated(self, nbytes: int) -> None:
        """Take in the messages that are complete."""
        self._heard = self._service.loop.time()
        self._take_in(bytes(memoryview(self._service.received)[:nbytes]))

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
        self._upload.drop()
        self._service.connections.discard(self)
        if not self._service.connections:
            self._service.last_closed.set()

    # Ending it

    def close_if_silent(self, now: float) -> None:
        """Close a connection that has kept the daemon waiting. An idle one is told no reason: it waits for nothing."""
        limits = self._service.limits
        if not self._client and now - self._opened > limits.handshake:
            self.refuse(ProtocolError(f"no greeting within {limits.handshake:g} s."))
        elif self._frame_began is not None and now - self._frame_began > limits.unfinished:
            self.refuse(ProtocolError(f"a message was begun and not ended within {limits.unfinished:g} s."))
        elif now - self._heard > limits.idle and not self._unanswered:
            if self._is_write_paused:
                self.abort()  # a client that has not read for so long would keep it open for ever
            else:
                self.close()

    def tell_progress(self, now: float) -> bool:
        """Tell the client how far each unanswered request is, or that it still waits. False when there is none.

        A client's time limit counts silence, and its request may wait behind slow ones.
        """
        for request, (heard_at, looked_at) in list(self._unanswered.items()):
            if self._is_write_paused:
                break
            if request.looked_at != looked_at or now - heard_at >= _SIGN_OF_LIFE:
                self._unanswered[request] = (now, request.looked_at)
                self._send(BatchProgress(request.id, request.looked_at, request.count))
        return bool(self._unanswered)

    def refuse(self, error: RegistryError) -> None:
        """Tell the client what is wrong with the whole connection, and close it."""
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
        """Whether the client's next message may be taken in."""
        is_open = not self._is_closing and not self._service.is_stopping
        return is_open and not self._is_write_paused and len(self._unanswered) < protocol.WINDOW

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
        self._service.queue.refuse_if_full()
        self._accept(SingleRequest(self._client, message, self._reply, self._size))

    def _take_part(self, message: Part) -> None:
        self._upload.add(message.modules)

    def _take_batch(self, message: RegisterMany | ApplyDiscovery) -> None:
        self._service.queue.refuse_if_full()
        modules, held = self._upload.take(message.count)
        request = batch_request(self._client, message, modules, self._reply, held)
        self._accept(request)

    def _accept(self, request: ClientRequest) -> None:
        self._await(request)
        self._service.queue.put(request)

    def _await(self, request: ClientRequest | UsageReport) -> None:
        self._unanswered[request] = (self._heard, 0)
        self._service.watch_progress()

    def _tell_status(self, message: ReadStatus) -> None:
        self._send(Status(message.id, self._service.status()))

    def _take_usage(self, message: ReportUsage) -> None:
        durable = self._service.take_usage(message.batch)
        if durable is None:
            self._send(Done(message.id, self._service.queue.revision))
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
        self._resume()

    def _send(self, answer: Answer | Welcome) -> None:
        if not self._transport.is_closing():
            self._transport.write(frame(answer))
