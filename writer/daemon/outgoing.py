"""What the daemon writes to one client: the loop's messages, and answers that the commit thread sends itself.

A lone request is answered by the commit thread. Otherwise its client would also wait until the kernel has woken the
loop. Both threads write whole messages, one after the other.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import Final, Protocol

from dspy_registry.registry_store.protocol import Answer, BatchProgress, Welcome, frame

_SHORT: Final = 4096  # bytes; a longer answer may not fit into the socket's buffer, and only the loop may wait


class Answerable(Protocol):
    """A request. `is_answered`: its answer is written, so nothing more is said about it."""

    is_answered: bool


class Outgoing:
    """The way to one client, from `begin` on. The transport belongs to the loop."""

    __slots__ = ("_descriptor", "_is_lost", "_mutex", "_rest", "_transport")

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._descriptor = -1
        self._mutex = threading.Lock()
        self._rest = b""  # of an answer that the commit thread sent in part
        self._is_lost = False

    def begin(self, transport: asyncio.Transport, descriptor: int) -> None:
        """Write to this transport. `descriptor` is its socket's."""
        self._transport, self._descriptor = transport, descriptor

    def end(self) -> None:
        """The socket is closed next, and its descriptor may become another connection's. Loop thread."""
        with self._mutex:
            self._is_lost = True

    # In the loop's thread: what the client does not read yet is kept for it

    def send(self, message: Answer | Welcome) -> None:
        """Write a message."""
        with self._mutex:
            self._write(frame(message))

    def tell(self, request: Answerable, progress: BatchProgress) -> None:
        """Write the progress of a request, unless it is answered."""
        with self._mutex:
            if not request.is_answered:
                self._write(frame(progress))

    def answer(self, request: Answerable, answer: Answer) -> None:
        """Write the answer to a request, unless the commit thread did."""
        with self._mutex:
            if not request.is_answered:
                request.is_answered = True
                self._write(frame(answer))
            elif self._rest:
                self._write(b"")

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._rest + data)
            self._rest = b""

    # In the commit thread

    def answer_at_once(self, request: Answerable, answer: Answer) -> None:
        """Write the answer to a request if the client can take it at once. Else the loop writes it."""
        data = frame(answer)
        with self._mutex:
            is_free = not (self._is_lost or self._transport.is_closing() or self._transport.get_write_buffer_size())
            if len(data) > _SHORT or self._rest or not is_free:
                return
            try:
                sent = os.write(self._descriptor, data)
            except OSError:  # the buffer is full, or the client is gone
                return
            request.is_answered = True
            self._rest = data[sent:]
