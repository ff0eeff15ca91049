"""Calls whose answer never came, and those made afterwards: what was acknowledged is in force, and landed once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    AsyncWriterClient,
    ConflictError,
    ModuleInfo,
    Registry,
    StoreClosedError,
    UnknownModuleError,
    WriterClient,
    WriterTimeoutError,
)
from dspy_registry.registry_store import protocol
from dspy_registry.registry_store.protocol import FrameReader, Welcome, frame
from dspy_registry.writer.client.session import Session
from dspy_registry.writer.writer_lock import WriterLock
from tests.support.client_kinds import Opened, either, raised
from tests.support.daemon_process import PATIENT, Served, daemon, module
from tests.support.usage_helpers import wait_until

FIRST, SECOND = (module("acme.m", category=category) for category in ("first", "second"))


@pytest.fixture
def served(registry_folder: Path) -> Iterator[Served]:
    with daemon(registry_folder) as served:
        yield served


def abandon(served: Served, client: Any, call: str, *given: Any, **named: Any) -> None:
    """Have a call time out that the daemon receives all the same."""
    client.timeout = 0.05
    with served.stopped():
        assert isinstance(raised(getattr(client, call), *given, **named), WriterTimeoutError)
    client.timeout = PATIENT


def holds(served: Served, info: ModuleInfo | None) -> bool:
    with Registry(served.path) as registry:
        return registry.get("acme.m") == info


# Another change in between


def test_a_cancelled_call_is_not_taken_for_a_later_one(served: Served) -> None:
    async def cancel_and_call_again() -> None:
        async with AsyncWriterClient(served.path, timeout=PATIENT) as client:
            await client.register_module(module("acme.m"))
            cancelled = asyncio.ensure_future(client.register_module(FIRST))
            await asyncio.sleep(0)
            cancelled.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await cancelled
            await client.register_module(SECOND)
            await client.register_module(FIRST)

    asyncio.run(cancel_and_call_again())
    assert holds(served, FIRST)


@either
def test_a_call_made_again_after_another_is_carried_out(served: Served, connect: Opened) -> None:
    with connect(served.path) as client:
        client.register_module(module("acme.m"))
        abandon(served, client, "register_module", FIRST)
        if isinstance(client, WriterClient):  # a connection that another thread has left, for the next call to take
            client._idle.append(Session(client._folder, client._socket_path))
        client.register_module(SECOND)
        revision = client.register_module(FIRST)
        assert holds(served, FIRST)
        assert revision == client.revision if isinstance(client, WriterClient) else revision == client.status().revision


@either
def test_a_call_made_again_after_anothers_is_carried_out(served: Served, connect: Opened) -> None:
    with connect(served.path) as client, served.client() as other:
        client.register_module(module("acme.m"))
        abandon(served, client, "register_module", FIRST)
        wait_until(lambda: holds(served, FIRST), "the first")
        other.register_module(SECOND)
        client.register_module(FIRST)
    assert holds(served, FIRST)


@either
def test_a_condition_that_holds_no_more_is_a_conflict(served: Served, connect: Opened) -> None:
    with connect(served.path) as client, served.client() as other:
        client.register_module(module("acme.m"))
        abandon(served, client, "register_module", FIRST, expected_version=1)
        wait_until(lambda: holds(served, FIRST), "the first")
        other.register_module(SECOND)
        for back in (SECOND, FIRST):  # the second time the record is the same, but not the version
            other.register_module(back)
            error = raised(client.register_module, FIRST, expected_version=1)
            assert isinstance(error, ConflictError)
            assert error.current_version == (3 if back == SECOND else 4)


@either
def test_what_came_back_in_between_is_removed_again(served: Served, connect: Opened) -> None:
    with connect(served.path) as client, served.client() as other:
        client.register_module(FIRST)
        client.set_alias("short", "acme.m")
        for call, given, restored in (
            ("remove_alias", ("short",), lambda: other.set_alias("short", "acme.m")),
            ("unregister_module", ("acme.m",), lambda: other.register_module(FIRST)),
        ):
            abandon(served, client, call, *given)
            with Registry(served.path) as registry:
                wait_until(lambda: given[0] not in registry, "the removal")  # noqa: B023  # within the round
                restored()
                getattr(client, call)(*given)
                assert given[0] not in registry
            assert isinstance(raised(getattr(client, call), *given), UnknownModuleError)


# The same call again, and nothing in between


@either
def test_a_call_abandoned_again_and_again_has_the_effect_of_once(served: Served, connect: Opened) -> None:
    with connect(served.path) as client:
        client.register_module(module("acme.m"))
        for call, given, named in (
            ("register_module", (FIRST,), {"expected_version": 1}),
            ("unregister_module", ("acme.m",), {}),
        ):
            for _ in range(3):
                abandon(served, client, call, *given, **named)
            client.status()  # asks for no change, so it changes nothing
            getattr(client, call)(*given, **named)
    with Registry(served.path) as registry:
        assert registry.revision == 4


def test_calls_that_time_out_together_are_repeated_together(served: Served) -> None:
    async def together() -> list[Any]:
        async with AsyncWriterClient(served.path, timeout=PATIENT) as client:
            await client.status()

            async def register() -> list[Any]:
                calls = (client.register_module(module(f"acme.m{n}"), expected_version=0) for n in range(20))
                return await asyncio.gather(*calls, return_exceptions=True)

            client.timeout = 0.05
            with served.stopped():
                assert {type(answer) for answer in await register()} == {WriterTimeoutError}
            client.timeout = PATIENT
            return await register()

    revisions = asyncio.run(together())
    assert all(isinstance(revision, int) for revision in revisions)
    with Registry(served.path) as registry:
        assert {registry.describe(f"acme.m{n}").provenance.version for n in range(20)} == {1}


@either
def test_an_abandoned_call_is_repeated_past_the_daemons_death(registry_folder: Path, connect: Opened) -> None:
    with connect(registry_folder) as client:
        with daemon(registry_folder) as served:
            client.status()
            abandon(served, client, "register_module", FIRST, expected_version=0)
            wait_until(lambda: holds(served, FIRST), "the first")
            served.kill()
        with daemon(registry_folder), Registry(registry_folder) as registry:
            assert client.register_module(FIRST, expected_version=0) == registry.revision
            assert registry.describe("acme.m").provenance.version == 1


# A peer in the daemon's place


class Deaf:
    """Greets whoever connects and answers nothing. `heard` has connection, id and oldest of each request."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = WriterLock(folder)  # whose holder clients wait for
        self.heard: list[tuple[int, int, int]] = []
        self.connections: list[socket.socket] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(os.fspath(folder / "writer.sock"))
        self._socket.listen()
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                self.connections.append(connection)
                threading.Thread(target=self._hear, args=(connection, len(self.connections)), daemon=True).start()

    def _hear(self, connection: socket.socket, number: int) -> None:
        frames, is_greeted = FrameReader(protocol.MAX_FRAME_BYTES), False
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                for payload in frames.feed(data):
                    if is_greeted:
                        message: Any = protocol.decode_request(payload)
                        self.heard.append((number, message.id, message.oldest))
                    else:
                        is_greeted = True
                        connection.sendall(frame(Welcome(protocol.VERSION, 1)))

    async def has_heard(self, count: int) -> None:
        while len(self.heard) < count:
            await asyncio.sleep(0.001)

    def close(self) -> None:
        self._lock.release()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for connection in (self._socket, *self.connections):
            connection.close()


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Deaf]:
    peer = Deaf(tmp_path / "deaf")
    yield peer
    peer.close()


def test_no_request_passes_over_one_that_is_waited_for(deaf: Deaf, tmp_path: Path) -> None:
    async def lose_a_connection() -> list[int]:
        client = AsyncWriterClient(tmp_path / "deaf", timeout=PATIENT)
        first, second = (asyncio.ensure_future(client.register_module(module(f"acme.m{n}"))) for n in (1, 2))
        await deaf.has_heard(2)
        first.cancel()
        await asyncio.sleep(0)
        deaf.connections[0].shutdown(socket.SHUT_RDWR)
        await deaf.has_heard(3)  # the second, over another connection
        again = asyncio.ensure_future(client.register_module(module("acme.m1")))
        await deaf.has_heard(4)
        last = asyncio.ensure_future(client.register_module(module("acme.m3")))
        await deaf.has_heard(5)
        await client.close()
        await asyncio.gather(first, second, again, last, return_exceptions=True)
        (of_again, of_last) = deaf.heard[3:]
        return [of_again[1], of_last[2]]

    of_again, oldest = asyncio.run(lose_a_connection())
    waited_for = min(2, of_again)
    assert oldest == waited_for


@pytest.mark.parametrize("cancelled", [0, protocol.WINDOW])
def test_closing_ends_the_calls_that_wait_for_their_turn(deaf: Deaf, tmp_path: Path, cancelled: int) -> None:
    async def close() -> set[type]:
        client = AsyncWriterClient(tmp_path / "deaf", timeout=None)
        calls = [asyncio.ensure_future(client.register_module(module(f"acme.m{n}"))) for n in range(300)]
        await deaf.has_heard(protocol.WINDOW)
        for call in calls[:cancelled]:  # these keep their turns: the answers may still come
            call.cancel()
        await asyncio.sleep(0)
        await client.close()
        done, waiting = await asyncio.wait(calls, timeout=PATIENT / 10)
        for call in waiting:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert len(waiting) == 0
        return {type(call.exception()) for call in done if not call.cancelled()}

    assert asyncio.run(close()) == {StoreClosedError}
