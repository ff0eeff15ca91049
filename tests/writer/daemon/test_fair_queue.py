"""Users and clients of the daemon take turns by the time that their works take."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dspy_registry import BusyError, InvalidModuleError, ModuleInfo, ProtocolError, Registry
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.layout import MAX_RECORD_VALUES
from dspy_registry.registry_store.nesting import MANY, MOST_VALUES, excess
from dspy_registry.registry_store.protocol import Done, Register
from dspy_registry.registry_store.validation import validate_module
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.change_lines import LineBudget
from dspy_registry.writer.daemon.fair_queue import FairQueue
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.roles import Groups
from dspy_registry.writer.daemon.server import Connection, Connections
from dspy_registry.writer.daemon.service import Service
from tests.support.daemon_process import Peer, daemon, daemon_of, module, refused, registration

COSTLY = encode(ModuleInfo("acme.Costly", metadata={"x": [[]] * (MAX_RECORD_VALUES - 1)}))
TOO_MANY = encode(ModuleInfo("acme.TooMany", metadata={"x": [[]] * 1_000_000}))


class Named(Work):
    def __init__(self, user: int, client: bytes, number: int) -> None:
        self.by, self.client, self.id = (user, 1), client, number

    def __repr__(self) -> str:
        return f"{self.by}{self.client!r}{self.id}"


def taken(queue: FairQueue, seconds: dict[bytes, float], count: int) -> list[Named]:
    """The next works, each of which takes its client's seconds."""
    found = []
    for _ in range(count):
        work = queue.get(0)
        assert isinstance(work, Named)
        queue.charge(work, seconds[work.client])
        found.append(work)
    return found


def test_a_costly_client_makes_itself_wait() -> None:
    queue = FairQueue()
    for number in range(10):
        queue.put(Named(1, b"costly", number))
    for number in range(10):
        queue.put(Named(1, b"cheap", number))
    order = [work.client for work in taken(queue, {b"costly": 1.0, b"cheap": 0.001}, 12)]
    assert order.count(b"costly") <= 2


def test_users_have_equal_shares_however_many_clients_they_have() -> None:
    queue = FairQueue()
    clients = {b"%d" % number: 0.01 for number in range(20)}
    for client in clients:
        for number in range(10):
            queue.put(Named(1, client, number))
    for number in range(50):
        queue.put(Named(2, b"alone", number))
    users = [work.by[0] for work in taken(queue, {**clients, b"alone": 0.01}, 60) if work.by]
    assert abs(users.count(1) - users.count(2)) <= 2


def test_a_client_that_was_away_has_saved_up_no_turns() -> None:
    queue = FairQueue()
    for number in range(20):
        queue.put(Named(1, b"a", number))
    taken(queue, {b"a": 1.0}, 10)
    for number in range(20):
        queue.put(Named(1, b"b", number))
    order = [work.client for work in taken(queue, {b"a": 1.0, b"b": 1.0}, 10)]
    assert 4 <= order.count(b"a") <= 6


def test_works_of_one_client_stay_in_order_whatever_is_put_back() -> None:
    dice = random.Random(7)
    queue, numbers, seen = FairQueue(), dict.fromkeys(range(30), 0), {}
    done = 0
    while done < 1000:
        client = dice.randrange(30)
        queue.put(Named(client % 3, b"%d" % client, numbers[client]))
        numbers[client] += 1
        if dice.random() < 0.4:
            group = [work for _ in range(dice.randint(1, 8)) if (work := queue.get(0))]
            kept = dice.randint(0, len(group))
            for work in group[:kept]:
                queue.charge(work, dice.random())
                assert work.id == seen.get(work.client, -1) + 1
                seen[work.client] = work.id
                done += 1
            queue.put_back(group[kept:])


@pytest.mark.parametrize("users", [(1, 1), (1, 2)])
@pytest.mark.parametrize("costly", [1, 8])
@pytest.mark.parametrize("staged", [1, 2])
def test_who_is_put_back_is_not_overtaken_for_ever(users: tuple[int, int], costly: int, staged: int) -> None:
    """A group takes all that waits, and has time for few of its works. Costly clients send as fast as they can."""
    queue = FairQueue()
    number = 0

    def rounds_until(wanted: bytes) -> int:
        nonlocal number
        for count in range(1, 1000):
            for at in range(costly):
                number += 1
                queue.put(Named(users[0], b"costly%d" % at, number))
            group = list(iter(lambda: queue.get(0), None))
            for work in group[:staged]:
                assert work is not None
                queue.charge(work, 0.00002 if work.client == wanted else 0.03)
            queue.put_back(group[staged:])  # type: ignore[arg-type]
            if any(work is not None and work.client == wanted for work in group[:staged]):
                return count
        raise AssertionError("never")

    for at in range(64 * costly):
        queue.put(Named(users[0], b"costly%d" % (at % costly), at))
    for at in range(20):
        queue.put(Named(users[1], b"quiet", at))
        assert rounds_until(b"quiet") <= costly + 1


def test_what_a_client_took_last_is_expected_of_it() -> None:
    queue = FairQueue()
    costly, cheap = Named(1, b"costly", 1), Named(1, b"cheap", 1)
    for work, seconds in ((costly, 0.004), (cheap, 0.0001)):
        queue.put(work)
        queue.charge(work, seconds)
    assert (queue.expected(costly), queue.expected(cheap), queue.expected(Named(1, b"new", 1))) == (0.004, 0.0, 0.0)
    queue.charge(costly, 0.0001)
    assert queue.expected(costly) == 0.0
    for number in range(10_000):
        work = Named(1, b"%d" % number, 1)
        queue.put(work)
        queue.charge(work, 1.0)
    assert len(queue._took) <= 4096


def test_nothing_comes_of_an_empty_queue_and_all_of_an_ended_one() -> None:
    queue = FairQueue()
    assert queue.get(0) is None
    queue.put(Named(1, b"a", 0))
    queue.end()
    assert queue.get(None) is not None
    assert queue.get(None) is None


def test_values_are_bounded_before_they_are_made() -> None:
    assert validate_module(ModuleInfo("a.B", metadata={"x": [[] for _ in range(MAX_RECORD_VALUES - 1)]}))
    for fields in ({"metadata": {"x": [0] * MAX_RECORD_VALUES}}, {"examples": ("",) * (MAX_RECORD_VALUES + 1)}):
        with pytest.raises(InvalidModuleError, match=str(MAX_RECORD_VALUES)):
            validate_module(ModuleInfo("a.B", **fields))  # type: ignore[arg-type]
    assert excess(COSTLY) != MANY
    assert excess(TOO_MANY) == MANY
    assert excess(b"\xdd\0\0\xff\xff" + b"\xda\xff\xff" + b"x" * 0xFFFF) != MANY  # one long text
    assert excess(b"\x00" * (MOST_VALUES + 1)) == MANY


def test_a_record_of_too_many_values_is_refused_by_name_and_alone(registry_folder: os.PathLike[str]) -> None:
    with daemon(registry_folder) as served, served.peer() as peer:  # type: ignore[arg-type]
        peer.send(Register(1, 1, TOO_MANY), registration(2, module("acme.Good")))
        answers = {answer.id: answer for answer in (peer.receive(), peer.receive()) if answer is not None}  # type: ignore[union-attr]
        assert isinstance(refused(answers[1]), InvalidModuleError)
        assert isinstance(answers[2], Done)
        assert peer.ask(Register(3, 3, COSTLY))[0].id == 3


# Connections


def serve_few(path: str) -> None:
    from dspy_registry.writer.daemon.bounds import Bounds
    from tests.support.daemon_process import serve

    serve(path, bounds=Bounds(connections=8, spared=0.0))


def serve_busy(path: str) -> None:
    from dspy_registry.writer.daemon.bounds import Bounds
    from tests.support.daemon_process import serve

    serve(path, bounds=Bounds(connections=8, spared=3600.0))


def test_idle_connections_make_room_oldest_first(registry_folder: os.PathLike[str]) -> None:
    with daemon_of(__name__, "serve_few", registry_folder) as served:  # type: ignore[arg-type]
        peers = [served.peer() for _ in range(8)]
        peers[0].ask(registration(1, module("acme.First")))  # heard of again: now the second is the oldest
        with served.peer() as newcomer:
            assert isinstance(newcomer.ask(registration(1, module("acme.New")))[0], Done)
            assert peers[1].receive() is None
            assert isinstance(peers[0].ask(registration(2, module("acme.Second")))[0], Done)
        with served.client() as client, Registry(served.path) as registry:
            client.register_module(module("acme.Third"))
            assert "acme.New" in registry
        for peer in peers:
            peer.socket.close()


def test_connections_that_are_not_idle_are_kept(registry_folder: os.PathLike[str]) -> None:
    with daemon_of(__name__, "serve_busy", registry_folder) as served:  # type: ignore[arg-type]
        peers = [served.peer() for _ in range(8)]
        with Peer(served.path) as newcomer:
            from dspy_registry.registry_store import protocol

            newcomer.send(protocol.Hello(protocol.VERSION, bytes(16)))
            assert isinstance(refused(newcomer.welcome()), BusyError)
        assert isinstance(peers[0].ask(registration(1, module("acme.First")))[0], Done)
        for peer in peers:
            peer.socket.close()


def test_a_connection_that_waits_for_its_refusal_makes_room() -> None:
    async def refused_one() -> None:
        bounds = Bounds(connections=1, spared=3600.0)
        service = Service(*cast("Any", (SimpleNamespace(held_bytes=0), bounds, Groups(None, None), None, None, None)))
        connections = Connections()
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(socket.AF_UNIX)
        with theirs:
            transport, _ = await loop.create_unix_connection(lambda: Connection(service, connections), sock=ours)
            (refused_one,) = connections.open
            for _ in range(1000):
                connections.refusal_pace.wait(refused_one.user, loop.time())
            newcomer = Connection(service, connections)
            connections.open.add(newcomer)
            assert isinstance(connections.problem(newcomer, bounds, loop.time()), BusyError)
            refused_one.refuse(ProtocolError("a bad frame."))
            assert not transport.is_closing()
            assert connections.problem(newcomer, bounds, loop.time()) is None
            assert transport.is_closing()
            connections.open.discard(newcomer)
            await connections.last_closed.wait()

    asyncio.run(refused_one())


def test_each_of_many_bad_connections_is_told_why(registry_folder: os.PathLike[str]) -> None:
    with daemon(registry_folder) as served:  # type: ignore[arg-type]
        bad = [Peer(served.path) for _ in range(25)]
        for peer in bad:
            peer.socket.sendall(b"\xff\xff\xff\xff")
        for peer in bad:
            with peer:
                assert isinstance(refused(peer.receive()), ProtocolError)
                assert peer.receive() is None


# Log lines


def test_lines_of_one_kind_have_a_bound_and_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dspy_registry")
    budget = LineBudget(3, 10.0)
    for number in range(50):
        budget.info("refused %s", number, now=100.0)
    budget.info("refused %s", "later", now=110.0)
    lines = [record.getMessage() for record in caplog.records]
    assert lines[:3] == ["refused 0", "refused 1", "refused 2"]
    assert len(lines) == 4
    assert "47" in lines[3]
