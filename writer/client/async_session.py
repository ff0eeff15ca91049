"""A client's requests under asyncio: sent at once, and sent again when a connection is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from dspy_registry.registry_store import protocol, wire_errors
from dspy_registry.registry_store.errors import (
    ProtocolError,
    RegistryError,
    StoreClosedError,
    WriterTimeoutError,
    WriterUnavailableError,
)
from dspy_registry.registry_store.protocol import Answer, BatchProgress, Failed
from dspy_registry.writer.client.async_link import Link, is_greeted, open_link
from dspy_registry.writer.client.calls import Call
from dspy_registry.writer.client.session import (
    STARTING,
    Abandoned,
    Deadline,
    may_have_landed,
    new_client_id,
    unavailable,
)
from dspy_registry.writer.client.slots import Slots
from dspy_registry.writer.writer_lock import lock_holder

_PAUSES: Final = (0.002, 0.005, 0.01, 0.02, 0.05)  # seconds between attempts to connect; the last one repeats


class _Request:
    """A request without an answer yet. `repeats` are the ids of earlier requests with the same content."""

    __slots__ = ("call", "deadline", "id", "repeats", "waiter")

    def __init__(self, call: Call, number: int, repeats: tuple[int, ...], deadline: Deadline) -> None:
        self.call = call
        self.id = number
        self.repeats = repeats
        self.deadline = deadline
        self.waiter: asyncio.Future[Answer] | None = None  # None: no task waits for it

    def fail(self, error: RegistryError) -> None:
        """Raise this where the call waits."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_exception(error)


class AsyncSession:
    """One client id in one event loop, and its current connection.

    `_pending` holds the unanswered requests by rising id. When the connection is lost, requests that a task waits for
    are sent again over the next one, in order: the daemon knows which of them it has carried out. The others are
    forgotten. `_abandoned` remembers them for the case that the same call is made again.
    """

    def __init__(self, folder: Path, path: Path) -> None:
        self.loop = asyncio.get_running_loop()
        self._folder = folder
        self._path = path
        self._id = new_client_id()
        self._last = 0
        self._pending: dict[int, _Request] = {}
        self._abandoned: list[Abandoned] = []
        self._slots = Slots(protocol.WINDOW)
        self._link: Link | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._was_connected = False
        self._is_reached = False
        self._is_closed = False

    def __repr__(self) -> str:
        return f"AsyncSession({self._id.hex()}, {'connected' if self._link else 'not connected'})"

    async def call(self, call: Call, timeout: float | None) -> Answer:
        """Send a call and wait for its answer. Raises as Session.call does."""
        deadline = Deadline(timeout)
        if not await self._slots.take(deadline.left()):
            raise _too_late(timeout)
        if self._is_closed:
            self._slots.give_back()  # the next in line must learn of it too
            raise self._closed()
        repeats = self._repeated_by(call) if call.is_change else ()
        self._last += 1
        return await self._answer(_Request(call, self._last, repeats, deadline), timeout)

    async def _answer(self, request: _Request, timeout: float | None) -> Answer:
        waiter: asyncio.Future[Answer] = self.loop.create_future()
        request.waiter = waiter
        self._pending[request.id] = request
        if self._link is None:
            self._reconnect()
        else:
            self._send(self._link, request)
        timer = self._timer(request, timeout)
        try:
            answer = await waiter
        except (WriterTimeoutError, WriterUnavailableError):
            self._abandon(request)
            raise
        else:
            if may_have_landed(answer):
                self._abandon(request)
            return answer
        finally:
            if timer is not None:
                timer.cancel()
            request.waiter = None
            if self._link is None:
                self._forget(request)

    async def close(self) -> None:
        """Close the connection. Calls that wait raise StoreClosedError."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        link, self._link = self._link, None
        for request in list(self._pending.values()):
            request.fail(self._closed())
            self._forget(request)
        if link is not None:
            link.close()
            await link.lost

    def _closed(self) -> StoreClosedError:
        return StoreClosedError(f"the client of {self._folder} was closed before the answer came.")

    # Requests

    def _repeated_by(self, call: Call) -> tuple[int, ...]:
        """The requests of the abandoned call that this one repeats. Any other change forgets all abandoned calls."""
        for index, abandoned in enumerate(self._abandoned):
            if abandoned.call == call:
                return self._abandoned.pop(index).requests
        self._abandoned.clear()
        return ()

    def _abandon(self, request: _Request) -> None:
        if request.call.fails_when_repeated:
            self._abandoned.append(Abandoned(request.call, (*request.repeats, request.id)))
        # The daemon's reply cache does not reach further back.
        self._abandoned = [kept for kept in self._abandoned if kept.requests[-1] > self._last - protocol.WINDOW]

    def _forget(self, request: _Request) -> None:
        """Do not send the request again, and expect no answer."""
        if self._pending.pop(request.id, None) is not None:
            self._slots.give_back()

    def _send(self, link: Link, request: _Request) -> None:
        # Not writelines: in CPython 3.12 and 3.13 it registers the file number of a connection that was lost meanwhile,
        # whose number the next connection then bears.
        link.transport.write(b"".join(request.call.frames(request.id, self._oldest(request), request.repeats)))

    def _oldest(self, request: _Request) -> int:
        """The lowest id whose answer the daemon must keep: for a waiting request, or for one that may repeat it."""
        repeated = (abandoned.requests[0] for abandoned in self._abandoned)
        return min((request.id, *self._pending, *request.repeats[:1], *repeated))

    def _timer(self, request: _Request, timeout: float | None) -> asyncio.TimerHandle | None:
        left = request.deadline.left()
        return None if left is None else self.loop.call_later(left, self._time_out, request, timeout)

    def _time_out(self, request: _Request, timeout: float | None) -> None:
        if request.waiter is None:
            return
        if not request.deadline.is_over:  # there was progress
            self._timer(request, timeout)
        elif self._is_reached:
            request.fail(_too_late(timeout))
        else:
            request.fail(unavailable(self._folder, lost=self._was_connected))

    # Answers

    def answered(self, answer: Answer) -> None:
        """An answer has come. Raises the daemon's refusal of the whole connection."""
        request = self._pending.get(answer.id)
        if request is None:
            if isinstance(answer, Failed) and not answer.id:
                raise wire_errors.unpack(answer)
            raise ProtocolError(f"the daemon answered request {answer.id}, which this client did not send.")
        if isinstance(answer, BatchProgress):
            request.deadline.restart()
            if request.call.progress is not None:
                request.call.progress(answer.done, answer.total)
        elif isinstance(answer, Failed) and answer.was_overtaken:
            self._renumber(request)
        else:
            self._forget(request)
            if request.waiter is not None and not request.waiter.done():
                request.waiter.set_result(answer)

    def _renumber(self, request: _Request) -> None:
        """Give the request a new id, because it did not reach the daemon and later requests did."""
        del self._pending[request.id]
        self._last += 1
        request.id = self._last
        self._pending[request.id] = request
        if self._link is not None:
            self._send(self._link, request)

    def lost(self, link: Link, error: Exception) -> None:
        """A connection has ended."""
        if link is not self._link:
            return
        self._link = None
        self._is_reached = False
        for request in list(self._pending.values()):
            if request.waiter is None:
                self._forget(request)
        if isinstance(error, RegistryError):
            self._fail(error)
        elif self._pending:
            self._reconnect()

    def _fail(self, error: RegistryError) -> None:
        for request in self._pending.values():
            request.fail(error)

    # Connecting

    def _reconnect(self) -> None:
        if self._connecting is None:
            self._connecting = self.loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            link = await self._connected()
        except RegistryError as error:
            self._fail(error)
        else:
            self._link = link
            if link is not None:
                self._was_connected = True
                for _, request in sorted(self._pending.items()):
                    self._send(link, request)
        finally:
            self._connecting = None

    async def _connected(self) -> Link | None:
        """A connection that the daemon has admitted. None: no request waits for one."""
        patience = Deadline(None if self._was_connected else STARTING)
        attempt = 0
        while self._pending:
            link = await open_link(self._path, self._id, self)
            self._is_reached = link is not None
            if link is not None and await is_greeted(link):
                return link
            if not self._was_connected and (patience.is_over or lock_holder(self._folder) is None):
                raise unavailable(self._folder, lost=False)
            await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1
        return None


def _too_late(timeout: float | None) -> WriterTimeoutError:
    return WriterTimeoutError(f"the writer daemon did not answer within {timeout:g} s.")
