"""How long the daemon waits for clients, how long clients wait for it, and what it holds of those that do not read."""

from __future__ import annotations

import select
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import lmdb
import pytest

from dspy_registry import ModuleInfo, ProtocolError, WriterClient, WriterTimeoutError
from dspy_registry.registry_store import protocol
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.protocol import (
    BatchProgress,
    Done,
    Failed,
    Part,
    ReadStatus,
    RegisterMany,
    Status,
    frame,
)
from dspy_registry.registry_store.wire_errors import unpack
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.support.daemon_process import PATIENT, Peer, daemon, daemon_of, module, ready, registration
from tests.support.usage_helpers import wait_until

MIB = 1024 * 1024


# Clients that do not read


def serve_a_long_status(path: str) -> None:
    def extension(served: Daemon) -> None:
        served.add_section("long", lambda: "x" * (256 * 1024))

    Daemon(path, extensions=[extension]).run(ready)


def test_answers_that_nobody_reads_are_not_made(registry_folder: Path) -> None:
    with daemon_of(__name__, "serve_a_long_status", registry_folder) as served, served.peer() as peer:
        before = served.memory
        peer.send(*[ReadStatus(1)] * 2000)  # arrives as a whole: half a gigabyte of answers
        with served.peer() as other:
            for _ in range(3):
                assert isinstance(other.ask(ReadStatus(1))[0], Status)
        assert served.memory - before < 64 * MIB
        for _ in range(2000):  # each is answered all the same, once somebody reads
            assert isinstance(peer.receive(), Status)


def test_requests_beyond_the_window_wait_for_answers(registry_folder: Path) -> None:
    count = 5 * protocol.WINDOW
    with daemon(registry_folder) as served, held_up(registry_folder), served.peer() as peer, served.peer() as other:
        peer.send(
            *(registration(n, module(f"acme.m{n}"), oldest=1) for n in range(1, count + 1)), ReadStatus(count + 1)
        )
        (status,) = other.ask(ReadStatus(1))
        while status.status.queued < protocol.WINDOW:
            (status,) = other.ask(ReadStatus(1))
        assert status.status.queued == protocol.WINDOW
    with daemon(registry_folder) as served, served.peer() as peer:
        peer.send(*(registration(n, module(f"acme.n{n}"), oldest=1) for n in range(1, count + 1)))
        assert [peer.receive().id for _ in range(count)] == list(range(1, count + 1))


# Clients that wait


@contextmanager
def held_up(folder: Path) -> Iterator[None]:
    """Meanwhile no commit gets further than its beginning: this process has LMDB's one write transaction."""
    with (
        lmdb.open(str(folder), map_size=MIB, max_dbs=16, max_readers=4096) as environment,
        environment.begin(write=True) as txn,
    ):
        yield
        txn.abort()


def test_every_request_that_waits_hears_of_it(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.peer() as one, served.peer() as two:
        with held_up(registry_folder):
            one.send(registration(1, module("acme.m1")))  # the group under way
            assert one.receive_any() == BatchProgress(1, 0, 1)
            two.send(registration(7, module("acme.m2"), oldest=7), registration(8, module("acme.m3"), oldest=7))
            batch = [encode(module(f"acme.b{n}")) for n in range(3)]
            two.send(Part(batch), RegisterMany(9, 7, 3))  # and what is behind it
            assert [two.receive_any() for _ in range(6)] == [
                BatchProgress(7, 0, 1),
                BatchProgress(8, 0, 1),
                BatchProgress(9, 0, 3),
            ] * 2
        assert isinstance(one.receive(), Done)
        assert sorted(two.receive().id for _ in range(3)) == [7, 8, 9]


def test_a_disk_that_hangs_is_silence(registry_folder: Path) -> None:
    """Otherwise a call would wait for ever, whatever its time limit."""
    with daemon_of("tests.support.daemon_process", "serve_within", registry_folder, {"hanging": 0.0}) as served:
        with held_up(registry_folder), served.peer() as peer, WriterClient(registry_folder, timeout=3.0) as client:
            peer.send(registration(1, module("acme.m1")))
            with pytest.raises(WriterTimeoutError):
                client.register_module(ModuleInfo("acme.m2"))
            client.timeout = PATIENT
            assert client.status().queued == 2
            assert select.select([peer.socket], [], [], 0)[0] == []
        with served.peer() as peer:
            peer.send(registration(1, module("acme.m3")))
            assert isinstance(peer.receive(), Done)


# Clients that come slowly


@pytest.mark.parametrize("slow", ["to greet", "to end a message"])
def test_a_byte_now_and_then_is_no_sign_of_life(registry_folder: Path, slow: str) -> None:
    short = {"handshake": 0.5, "unfinished": 0.5}
    size = protocol.MAX_HELLO_BYTES
    begun = struct.pack(">I", size) + bytes(size)
    with daemon_of("tests.support.daemon_process", "serve_within", registry_folder, short) as served:
        peer = Peer(registry_folder) if slow == "to greet" else served.peer()
        with peer:
            for byte in begun[:-1]:
                peer.socket.sendall(bytes((byte,)))
                if select.select([peer.socket], [], [], 0.05)[0]:
                    break
            else:
                pytest.fail("it was listened to until the end")
            answer = peer.receive()
            assert isinstance(answer, Failed)
            error = unpack(answer)
            assert isinstance(error, ProtocolError)
            assert "0.5 s" in error.message


def test_a_message_that_the_daemon_does_not_take_in_is_not_late(registry_folder: Path) -> None:
    """The clock stands while the client may not send: it runs for what the client owes."""
    short = {"unfinished": 0.5}
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, short) as served,
        served.peer() as peer,
    ):
        requests = [registration(n, module(f"acme.m{n}"), oldest=1) for n in range(1, protocol.WINDOW + 1)]
        whole = frame(registration(protocol.WINDOW + 1, module("acme.last"), oldest=1))
        with held_up(registry_folder):
            peer.socket.sendall(b"".join(map(frame, requests)) + whole[:-1])
            heard = {(peer.receive_any() or Done(0, 0)).id for _ in range(4 * protocol.WINDOW)}  # for some seconds
            assert heard == set(range(1, protocol.WINDOW + 1))
            peer.socket.sendall(whole[-1:])
        assert [peer.receive().id for _ in range(protocol.WINDOW + 1)] == list(range(1, protocol.WINDOW + 2))


def test_a_client_that_never_reads_and_falls_silent_is_closed(registry_folder: Path) -> None:
    short = {"idle": 0.5}
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, short) as served,
        served.peer() as peer,
    ):
        peer.socket.setblocking(False)
        question = frame(ReadStatus(1)) * 10_000
        with suppress(BlockingIOError):
            while True:
                peer.socket.send(question)
        with served.client() as client:
            wait_until(lambda: client.status().connections == 1, "its end")
