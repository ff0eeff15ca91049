"""The gateway of a node that fails on the way, played by a server that answers as it is told. No etcd is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest

from dspy_registry.registry_store.errors import ClusterUnavailableError
from dspy_registry.writer.cluster.engine import UnknownOutcomeError
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.options import ClusterOptions
from tests.support.etcd import free_ports

_CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


def asked(says: Sequence[bytes], ask: Callable[[Etcd], Awaitable[Any]]) -> Any:
    """What becomes of a request to a node that sends these parts one after the other, and ends the connection."""

    async def run() -> Any:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            for part in says:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        engine = Etcd(ClusterOptions(endpoints=(f"http://127.0.0.1:{port}",)))
        try:
            return await ask(engine)
        finally:
            await engine.close()
            server.close()

    return asyncio.run(run())


def test_a_change_whose_reply_is_lost_may_have_been_made() -> None:
    with pytest.raises(UnknownOutcomeError):
        asked([], lambda engine: engine.transact({}, {b"k": b"v"}))


def test_a_change_that_no_node_has_seen_was_not_made() -> None:
    engine = Etcd(ClusterOptions(endpoints=(f"http://127.0.0.1:{free_ports(1)[0]}",)))

    async def run() -> None:
        try:
            await engine.transact({}, {b"k": b"v"})
        finally:
            await engine.close()

    with pytest.raises(ClusterUnavailableError) as raised:
        asyncio.run(run())
    assert not isinstance(raised.value, UnknownOutcomeError)


def test_what_is_not_a_gateway_is_named() -> None:
    page = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
    with pytest.raises(ClusterUnavailableError, match="does not answer as etcd's gateway does"):
        asked([page], lambda engine: engine.cluster_id())


def test_lines_of_a_watch_may_come_in_any_pieces() -> None:
    event = (
        b'{"result":{"header":{"revision":"7"},"events":[{"kv":{"key":"aw==","value":"dg==","mod_revision":"7"}}]}}\n'
    )
    text = event + b"\n" + event.replace(b'"7"', b'"8"')
    pieces = [text[:9], text[9:40], text[40:-5], text[-5:]]

    async def read(engine: Etcd) -> list[tuple[bytes, bytes | None, int]]:
        found = []
        with suppress(ClusterUnavailableError):  # the node ends the watch
            async for step in engine.watch_from(b"k", 1):
                found += [(change.key, change.value, change.revision) for change in step.changes]
        return found

    chunks = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces]
    assert asked([_CHUNKED, *chunks, b"0\r\n\r\n"], read) == [(b"k", b"v", 7), (b"k", b"v", 8)]


def test_every_node_that_does_not_answer_is_named_with_its_reason() -> None:
    first, second = sorted(f"http://127.0.0.1:{port}" for port in free_ports(2))
    told = set()
    for _ in range(8):  # which node is asked first is left to chance
        engine = Etcd(ClusterOptions(endpoints=(second, first)))

        async def run(engine: Etcd = engine) -> None:
            try:
                await engine.cluster_id()
            finally:
                await engine.close()

        with pytest.raises(ClusterUnavailableError) as raised:
            asyncio.run(run())
        told.add(raised.value.message)
        assert raised.value.remedy == "Look at the cluster's nodes."
    (message,) = told
    assert message.startswith(f"no node of the cluster answers: {first} (Cannot connect")
    assert f"; {second} (Cannot connect" in message
