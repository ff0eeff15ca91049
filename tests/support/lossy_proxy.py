"""A proxy in front of an etcd node that loses replies when a test says so: the request arrives, its answer does not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit


class LossyProxy:
    """Forwards connections.

    `lose` says of how many requests that hold a text the reply is lost, with the connection. While it `is_mute`, no
    reply gets through, and no connection ends: replies are held back. `hold` is a text: of connections on which a
    request holds it, replies are held back until this proxy is cut; `held` counts these connections.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "", parts.port or 0)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.lose: dict[bytes, int] = {}
        self.lost = 0
        self.is_cut = False
        self.is_mute = False
        self.hold = b""
        self.held = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """From now on nothing gets through."""
        self.is_cut = True
        for one in list(self._open):
            _end(one)

    def mend(self) -> None:
        self.is_cut = False

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                if self.is_cut:
                    _end(client)
                    continue
                try:
                    server = socket.create_connection(self._target)
                except OSError:  # nobody listens there now
                    _end(client)
                    continue
                self._open |= {client, server}
                fate = _Fate()
                for source, target, is_request in ((client, server, True), (server, client, False)):
                    threading.Thread(target=self._pump, args=(source, target, is_request, fate), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_request: bool, fate: _Fate) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if is_request:
                    self._decide(data, fate)
                elif fate.loses.is_set():
                    self.lost += 1
                    break
                while (self.is_mute or fate.waits.is_set()) and not is_request and not self.is_cut:
                    time.sleep(0.005)  # no connection loses what is in between
                target.sendall(data)
        for one in (source, target):
            self._open.discard(one)
            _end(one)

    def _decide(self, request: bytes, fate: _Fate) -> None:
        for text, left in self.lose.items():
            if left and text in request:
                self.lose[text] = left - 1
                fate.loses.set()
        if self.hold and self.hold in request:
            self.held += 1
            fate.waits.set()


class _Fate:
    """What becomes of a connection's replies."""

    def __init__(self) -> None:
        self.loses = threading.Event()
        self.waits = threading.Event()


def _end(one: socket.socket) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


@contextmanager
def lossy(target: str) -> Iterator[LossyProxy]:
    proxy = LossyProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
