"""A client's connection to the daemon, for one thread at a time: it sends one request and waits for its answer."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import Final

from dspy_registry.registry_store import protocol, wire_errors
from dspy_registry.registry_store.errors import (
    ClusterUnavailableError,
    InvalidArgumentError,
    ProtocolError,
    RegistryError,
    StorePermissionError,
    WriterTimeoutError,
    WriterUnavailableError,
)
from dspy_registry.registry_store.protocol import Answer, BatchProgress, Failed, FrameReader, Hello, frame
from dspy_registry.registry_store.validation import is_time_limit
from dspy_registry.writer.client.calls import Call
from dspy_registry.writer.writer_lock import lock_holder

_RECEIVED_AT_ONCE: Final = 64 * 1024
_PAUSES: Final = (0.0, 0.002, 0.005, 0.01, 0.02, 0.05)  # seconds between attempts to connect; the last one repeats
_LONGEST: Final = 1_000_000.0  # seconds
STARTING: Final = 2.0
"""Seconds that the first connection waits for a daemon that has the writer lock and does not listen yet."""


def new_client_id() -> bytes:
    """A new id. It begins with the time, so that clients of one time share pages of the stored reply cache."""
    return time.time_ns().to_bytes(8, "big") + os.urandom(protocol.CLIENT_ID_BYTES - 8)


def check_timeout(seconds: float | None) -> float | None:
    """The time limit of a client, in seconds or None. Raises InvalidArgumentError."""
    if seconds is not None and not is_time_limit(seconds):
        raise InvalidArgumentError(f"timeout is {seconds!r}, it must be a number of seconds above 0, or None.")
    return seconds


class Deadline:
    """A time limit in seconds from now. None means no limit. A limit too long for system calls also means no limit."""

    __slots__ = ("_at", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = None if seconds is None or seconds > _LONGEST else seconds
        self.restart()

    def restart(self) -> None:
        """Count from now on: there was progress."""
        self._at = None if self._seconds is None else time.monotonic() + self._seconds

    def left(self) -> float | None:
        """Seconds left, always above 0. None when there is no limit."""
        return None if self._at is None else max(self._at - time.monotonic(), 1e-6)

    @property
    def is_over(self) -> bool:
        """Whether the time is up."""
        return self._at is not None and time.monotonic() >= self._at

    def sleep(self, attempt: int) -> None:
        """Sleep between two attempts, but not beyond the limit."""
        pause = _PAUSES[min(attempt, len(_PAUSES) - 1)]
        left = self.left()
        time.sleep(pause if left is None else min(pause, left))


def may_have_landed(answer: Answer) -> bool:
    """Whether the daemon itself could not find out if the change was made: its cluster did not answer."""
    return isinstance(answer, Failed) and answer.kind == ClusterUnavailableError.__name__


class Abandoned:
    """A call of which nobody told whether it took effect, and the ids of its requests.

    A repeated call is a new request that names these ids. If one of them succeeded and its effect is still in force,
    the daemon answers with that success: the new request itself could only fail. Cancelled calls are not kept, and no
    call is kept after the client has sent another change.
    """

    __slots__ = ("call", "requests")

    def __init__(self, call: Call, requests: tuple[int, ...]) -> None:
        self.call = call
        self.requests = requests[-protocol.WINDOW :]

    def __repr__(self) -> str:
        return f"Abandoned({self.call}, {self.requests})"


class Session:
    """One connection, opened when it is needed and again when it was lost, under one client id."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder = folder
        self._path = path
        self._id = new_client_id()
        self._last = 0
        self.abandoned: Abandoned | None = None
        """The last call, if it is not known whether it took effect and the next call may repeat it."""
        self._socket: socket.socket | None = None
        self._frames = FrameReader(protocol.MAX_ANSWER_BYTES)
        self._payloads: deque[bytes] = deque()
        self._was_connected = False

    def __repr__(self) -> str:
        return f"Session({self._id.hex()}, {'connected' if self._socket else 'not connected'})"

    def close(self) -> None:
        """Close the connection. The next call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def call(self, call: Call, timeout: float | None) -> Answer:
        """Send a call and wait for its answer. A lost connection is replaced.

        Raises WriterUnavailableError, WriterTimeoutError, ProtocolError, and the daemon's refusal of the connection.
        """
        self._last += 1
        repeats = self.abandoned.requests if self.abandoned is not None and self.abandoned.call == call else ()
        if call.is_change:
            self.abandoned = None
        try:
            answer = self._answer(call, self._last, repeats, timeout)
        except (WriterTimeoutError, WriterUnavailableError):
            self._abandon(call, repeats)
            raise
        if may_have_landed(answer):
            self._abandon(call, repeats)
        return answer

    def _abandon(self, call: Call, repeats: tuple[int, ...]) -> None:
        if call.fails_when_repeated:
            self.abandoned = Abandoned(call, (*repeats, self._last))

    def _answer(self, call: Call, request: int, repeats: tuple[int, ...], timeout: float | None) -> Answer:
        deadline = Deadline(timeout)
        attempt = 0
        while True:
            try:
                self._connect(deadline, lost=attempt > 0)
                return self._exchange(call, request, deadline, repeats)
            except RegistryError:
                self.close()
                raise
            except (ConnectionError, BlockingIOError) as error:
                self.close()
                if deadline.is_over:
                    raise unavailable(self._folder, lost=True) from error
                deadline.sleep(attempt)
                attempt += 1
            except TimeoutError as error:
                self.close()
                raise WriterTimeoutError(f"the writer daemon did not answer within {timeout:g} s.") from error
            except BaseException:
                self.close()
                raise

    # One attempt

    def _exchange(self, call: Call, request: int, deadline: Deadline, repeats: tuple[int, ...] = ()) -> Answer:
        for data in call.frames(request, min(repeats, default=request), repeats):
            self._send(data, deadline)
        while True:
            answer = protocol.read_answer(self._receive(deadline))
            if isinstance(answer, Failed) and answer.id == 0:
                raise wire_errors.unpack(answer)
            if answer.id != request:
                raise ProtocolError(f"the daemon answered request {answer.id}, although request {request} was sent.")
            if not isinstance(answer, BatchProgress):
                return answer
            self._progressed(call, answer, deadline)

    def _progressed(self, call: Call, answer: BatchProgress, deadline: Deadline) -> None:
        """The daemon is at work. The time limit counts silence only."""
        deadline.restart()
        if call.progress is not None:
            call.progress(answer.done, answer.total)

    def _send(self, data: bytes, deadline: Deadline) -> None:
        assert self._socket is not None
        self._socket.settimeout(deadline.left())
        self._socket.sendall(data)

    def _receive(self, deadline: Deadline) -> bytes:
        assert self._socket is not None
        while not self._payloads:
            self._socket.settimeout(deadline.left())
            data = self._socket.recv(_RECEIVED_AT_ONCE)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "the daemon closed the connection")
            self._payloads.extend(self._frames.feed(data))
        return self._payloads.popleft()

    # Connecting

    def _connect(self, deadline: Deadline, *, lost: bool) -> None:
        if self._socket is not None:
            return
        attempt = 0
        patience = Deadline(None if self._was_connected else STARTING)
        while not self._try_to_connect(deadline):
            is_starting = self._was_connected or (lock_holder(self._folder) is not None and not patience.is_over)
            if not is_starting or deadline.is_over:
                raise unavailable(self._folder, lost=lost)
            deadline.sleep(attempt)
            attempt += 1
        self._was_connected = True

    def _try_to_connect(self, deadline: Deadline) -> bool:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(deadline.left())
            connection.connect(os.fspath(self._path))
        except PermissionError as error:
            connection.close()
            raise not_permitted(self._path) from error
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError) and not isinstance(error, TimeoutError | BlockingIOError):
                return False
            raise
        self._socket = connection
        self._frames = FrameReader(protocol.MAX_ANSWER_BYTES)
        self._payloads.clear()
        self._greet(deadline)
        return True

    def _greet(self, deadline: Deadline) -> None:
        with contextlib.suppress(BrokenPipeError):  # refused already: the daemon says why
            self._send(frame(Hello(protocol.VERSION, self._id)), deadline)
        welcome = protocol.read_welcome(self._receive(deadline))
        if isinstance(welcome, Failed):
            raise wire_errors.unpack(welcome)
        if welcome.version != protocol.VERSION:
            raise protocol.version_mismatch(protocol.VERSION, welcome.version)


def not_permitted(path: Path) -> StorePermissionError:
    """The error when this user may not open the socket."""
    return StorePermissionError(
        f"{path} may not be opened by this user.",
        remedy="Send changes as the daemon's user, or let the daemon admit a group (`serve --group NAME`).",
    )


def unavailable(folder: Path, *, lost: bool) -> WriterUnavailableError:
    """The error when no daemon answers, with what is known of the reason."""
    holder = lock_holder(folder)
    if lost:
        return WriterUnavailableError(
            f"the connection to the writer daemon of {folder} was lost before it answered.",
            remedy="Start it again with `dspy-registry serve` and repeat the call with the same client: "
            "a request that arrives twice takes effect once.",
        )
    if holder is not None:
        return WriterUnavailableError(
            f"no writer daemon answers for {folder}: process {holder or 'unknown'} writes to it and does not listen.",
            remedy="Stop it, then start a daemon with `dspy-registry serve`.",
        )
    return WriterUnavailableError(f"no writer daemon answers for {folder}.")
