"""What all connections of the daemon share, and the requests of one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from dspy_registry.registry_store import protocol, wire_errors
from dspy_registry.registry_store.errors import ProtocolError, RegistryError
from dspy_registry.registry_store.protocol import (
    Answer,
    ApplyDiscovery,
    BatchProgress,
    DaemonStatus,
    Done,
    HealthRequest,
    OpenCircuit,
    Part,
    Publish,
    ReadStatus,
    RegisterMany,
    ReportOutcomes,
    ReportUsage,
    ResetCircuit,
    Status,
)
from dspy_registry.registry_store.records import By
from dspy_registry.writer.daemon.batch_upload import BatchUpload
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.group_commit import GroupCommit
from dspy_registry.writer.daemon.outgoing import Outgoing
from dspy_registry.writer.daemon.publication import PublicationRequest
from dspy_registry.writer.daemon.requests import ClientRequest, SingleRequest, UsageReport, batch_request
from dspy_registry.writer.daemon.roles import Groups, Role, overstep

_SIGN_OF_LIFE: Final = 1.0  # seconds between signs of life for a request that makes no progress


@dataclass(eq=False)
class Service:
    """What all connections of the daemon share. Belongs to the loop's thread.

    `groups` are the Unix groups to admit. `status`, `take_usage` and `take_health` answer the requests of that name;
    `take_change` takes a client's change over from the queue, or leaves it to the queue (False). `watch_progress` is
    called when a request begins to wait.
    """

    queue: GroupCommit
    bounds: Bounds
    groups: Groups
    status: Callable[[], DaemonStatus]
    take_usage: Callable[[bytes], asyncio.Future[int] | None]
    take_health: Callable[[HealthRequest], None]
    take_change: Callable[[Work], bool] = lambda request: False
    watch_progress: Callable[[], None] = lambda: None
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    is_stopping: bool = False


class Requests:
    """One connection's requests: it accepts messages, and hands their answers to `outgoing`.

    `answered` is called after an answer that came later than its message.
    """

    def __init__(self, service: Service, outgoing: Outgoing, answered: Callable[[], None]) -> None:
        self._service = service
        self._outgoing = outgoing
        self._send = outgoing.send
        self._answered = answered
        self._upload = BatchUpload(service.queue, service.bounds)
        # For each request: when its client was last told of it, and the progress told then.
        self._unanswered: dict[ClientRequest | UsageReport, tuple[float, int]] = {}
        self.by: By | None = None  # whose process is at the other end; None: the kernel does not tell
        self._client = b""
        self._size = 0  # of the message at hand
        self._heard = 0.0
        self.role = Role.READ
        self._handlers: dict[type, Callable[[Any], None]] = {
            Part: lambda message: self._upload.add(message.modules),
            RegisterMany: self._take_batch,
            ApplyDiscovery: self._take_batch,
            Publish: self._take_publication,
            ReadStatus: lambda message: self._send(Status(message.id, self._service.status())),
            ReportUsage: self._take_usage,
            ReportOutcomes: self._take_health,
            OpenCircuit: self._take_health,
            ResetCircuit: self._take_health,
        }

    @property
    def unanswered(self) -> int:
        """How many requests wait for their answers."""
        return len(self._unanswered)

    @property
    def is_at_work(self) -> bool:
        """Whether a request waits for its answer, or a batch for its end."""
        return bool(self._unanswered) or self._upload.is_begun

    def take(self, client: bytes, payload: bytes, heard: float) -> None:
        """Accept a client's message, which came at the loop's time `heard`, or send why not.

        Raises ProtocolError for a message that is not understood.
        """
        self._client, self._size, self._heard = client, len(payload), heard
        try:
            message = protocol.decode_request(payload)
        except protocol.UNREADABLE as error:
            raise ProtocolError(f"a message is not understood: {error}.") from error
        handler = self._handlers.get(type(message), self._take_change)
        try:
            problem = overstep(message, self.role)
            if problem is None:
                handler(message)
            elif not isinstance(message, Part):  # which is not answered: the request that follows it is
                raise problem
        except ProtocolError:
            raise
        except RegistryError as error:
            self._send(wire_errors.pack(message.id, error))

    def tell_progress(self, now: float, may_send: Callable[[], bool]) -> bool:
        """Tell the client the progress of each unanswered request. False when no request is unanswered.

        A client's time limit counts silence, and its request may wait behind slow ones.
        """
        for request, (heard_at, looked_at) in list(self._unanswered.items()):
            if not may_send():
                break
            if request.looked_at != looked_at or now - heard_at >= _SIGN_OF_LIFE:
                self._unanswered[request] = (now, request.looked_at)
                self._outgoing.tell(request, BatchProgress(request.id, request.looked_at, request.count))
        return bool(self._unanswered)

    def drop_upload(self) -> None:
        """Free the parts of a batch that is not complete. Accepted requests are still carried out."""
        self._upload.drop()

    def _take_change(self, message: Any) -> None:
        self._service.queue.refuse_if_full()
        self._accept(SingleRequest(self._client, message, self._reply, self._size))

    def _take_batch(self, message: RegisterMany | ApplyDiscovery) -> None:
        self._service.queue.refuse_if_full()
        modules, held = self._upload.take(message.count)
        self._accept(batch_request(self._client, message, modules, self._reply, held))

    def _take_publication(self, message: Publish) -> None:
        self._service.queue.refuse_if_full()
        pieces, held = self._upload.take(message.count)
        self._accept(PublicationRequest(self._client, message, pieces, self._reply, held + self._size))

    def _accept(self, request: ClientRequest) -> None:
        request.by = self.by
        request.outgoing = self._outgoing
        self._await(request)
        if not self._service.take_change(request):
            self._service.queue.put(request)

    def _await(self, request: ClientRequest | UsageReport) -> None:
        self._unanswered[request] = (self._heard, 0)
        self._service.watch_progress()

    def _take_usage(self, message: ReportUsage) -> None:
        durable = self._service.take_usage(message.batch)
        if durable is None:
            self._send(Done(message.id, self._service.queue.revision))
        else:
            report = UsageReport(message.id)
            self._await(report)
            durable.add_done_callback(lambda merged: self._acknowledge_usage(report, merged))

    def _take_health(self, message: HealthRequest) -> None:
        self._service.take_health(message)
        self._send(Done(message.id, self._service.queue.revision))

    def _acknowledge_usage(self, report: UsageReport, merged: asyncio.Future[int]) -> None:
        error: BaseException | None = asyncio.CancelledError() if merged.cancelled() else merged.exception()
        self._reply(report, wire_errors.pack(report.id, error) if error else Done(report.id, merged.result()))

    def _reply(self, request: ClientRequest | UsageReport, answer: Answer) -> None:
        del self._unanswered[request]
        self._outgoing.answer(request, answer)
        self._answered()
