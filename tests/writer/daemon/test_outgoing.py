"""What two threads write to one client: whole messages, each answer once, and nothing to another's connection."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dspy_registry import WriterClient
from dspy_registry.registry_store import protocol
from dspy_registry.registry_store.protocol import BatchProgress, Done, Failed, FrameReader
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.group_commit import GroupCommit
from dspy_registry.writer.daemon.outgoing import Answerable, Outgoing
from dspy_registry.writer.daemon.reply_cache import ReplyCache
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.store import Store
from tests.support.daemon_process import PATIENT, daemon, module

Scene = Callable[[Outgoing, asyncio.Transport, socket.socket], Awaitable[None]]


def play(scene: Scene) -> None:
    """Run a scene with the way to a client, its transport, and the client's end."""

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with theirs:
            transport, _ = await asyncio.get_running_loop().create_unix_connection(asyncio.Protocol, sock=ours)
            way = Outgoing()
            way.begin(transport, ours.fileno())
            await scene(way, transport, theirs)

    asyncio.run(run())


def request() -> Answerable:
    return SimpleNamespace(is_answered=False)


async def from_another_thread(way: Outgoing, asked: Answerable, answer: protocol.Answer) -> None:
    await asyncio.to_thread(way.answer_at_once, asked, answer)


async def received(theirs: socket.socket, transport: asyncio.Transport) -> list[protocol.Answer]:
    """All messages that the client gets until the daemon has closed."""
    transport.close()
    data = b""
    theirs.setblocking(False)
    while part := await asyncio.get_running_loop().sock_recv(theirs, 1 << 20):
        data += part
    return [protocol.read_answer(payload) for payload in FrameReader(protocol.MAX_ANSWER_BYTES).feed(data)]


def test_an_answer_that_went_out_at_once_is_written_once() -> None:
    async def scene(way: Outgoing, transport: asyncio.Transport, theirs: socket.socket) -> None:
        asked = request()
        await from_another_thread(way, asked, Done(1, 7))
        assert asked.is_answered
        way.answer(asked, Done(1, 7))
        way.answer(request(), Done(2, 8))
        assert await received(theirs, transport) == [Done(1, 7), Done(2, 8)]

    play(scene)


def test_an_answered_request_makes_no_progress() -> None:
    async def scene(way: Outgoing, transport: asyncio.Transport, theirs: socket.socket) -> None:
        asked = request()
        way.tell(asked, BatchProgress(1, 0, 1))
        await from_another_thread(way, asked, Done(1, 7))
        way.tell(asked, BatchProgress(1, 1, 1))
        assert await received(theirs, transport) == [BatchProgress(1, 0, 1), Done(1, 7)]

    play(scene)


def test_nothing_overtakes_what_the_client_has_not_read() -> None:
    async def scene(way: Outgoing, transport: asyncio.Transport, theirs: socket.socket) -> None:
        asked, before = request(), []
        while not transport.get_write_buffer_size():
            before.append(Done(1, len(before)))
            way.send(before[-1])
        await from_another_thread(way, asked, Done(2, 7))
        assert not asked.is_answered
        way.answer(asked, Done(2, 7))
        assert await received(theirs, transport) == [*before, Done(2, 7)]

    play(scene)


def test_an_answer_that_finds_the_buffer_full_is_left_to_the_loop() -> None:
    async def scene(way: Outgoing, transport: asyncio.Transport, theirs: socket.socket) -> None:
        answered = 0
        while True:
            asked = request()
            await from_another_thread(way, asked, Done(1, answered))
            if not asked.is_answered:
                break
            answered += 1
        way.answer(asked, Done(1, answered))
        assert await received(theirs, transport) == [Done(1, number) for number in range(answered + 1)]

    play(scene)


def test_a_long_answer_is_left_to_the_loop() -> None:
    async def scene(way: Outgoing, transport: asyncio.Transport, theirs: socket.socket) -> None:
        asked, answer = request(), Failed(1, "StoreError", ("x" * 100_000,))
        await from_another_thread(way, asked, answer)
        assert not asked.is_answered
        way.answer(asked, answer)
        assert await received(theirs, transport) == [answer]

    play(scene)


@pytest.mark.parametrize("how", ["end", "close"])
def test_a_connection_that_ends_gets_no_answer(how: str) -> None:
    """Its descriptor may be another connection's from then on."""

    async def scene(way: Outgoing, transport: asyncio.Transport, theirs: socket.socket) -> None:
        asked = request()
        if how == "end":
            way.end()
        else:
            transport.close()
        await from_another_thread(way, asked, Done(1, 7))
        assert not asked.is_answered
        assert await received(theirs, transport) == []

    play(scene)


def test_who_has_an_answer_finds_it_counted(registry_folder: Path) -> None:
    with daemon(registry_folder), WriterClient(registry_folder) as client:
        for number in range(1, 51):
            revision = client.register_module(module(f"acme.M{number}"))
            status = client.status()
            assert (status.requests, status.queued) == (number, 0)
            assert status.revision == revision


class Lone(Work):
    """A work that notes whether its answer went out before the loop could deliver it."""

    def __init__(self) -> None:
        self.answered, self.delivered = threading.Event(), asyncio.Event()

    def stage(self, draft: Draft) -> None:
        pass

    def success(self, revision: int) -> int:
        return revision

    def answer_at_once(self, answer: Any) -> None:
        self.answered.set()

    def resolve(self, answer: Any) -> None:
        self.delivered.set()


def test_a_lone_answer_does_not_wait_for_the_loop(registry_folder: Path) -> None:
    async def run() -> None:
        queue = GroupCommit(store.committer, ReplyCache(), Bounds(), lambda error: None)
        first, second, third = Lone(), Lone(), Lone()
        queue.put(first)
        assert first.answered.wait(PATIENT)  # the loop does nothing meanwhile
        assert (queue.requests, queue.queued) == (1, 0)
        queue.put(second)
        while queue.queued:
            time.sleep(0.001)
        await second.delivered.wait()
        assert not second.answered.is_set(), "not before the first, which the loop had not delivered"
        queue.put(third)
        await third.delivered.wait()
        assert third.answered.is_set()
        await queue.stop()

    with closing(Store(registry_folder)) as store:
        asyncio.run(run())
