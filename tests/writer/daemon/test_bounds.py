"""No client takes more of a daemon than its bounds allow: of its time, its connections or its memory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from dspy_registry import BusyError, InvalidModuleError, ProtocolError, Registry
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.protocol import Done, Failed, Part, ReadStatus, RegisterMany, Status, frame
from dspy_registry.writer.daemon.bounds import Bounds
from tests.support.daemon_process import Peer, daemon, daemon_of, module, refused, registration, unimpressed


def test_half_a_message_disturbs_nobody(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.peer() as slow, served.client() as client:
        whole = frame(registration(1, module("acme.Slow")))
        for byte in whole[:-1]:
            slow.socket.sendall(bytes((byte,)))
        client.register_module(module("acme.Quick"))
        slow.socket.sendall(whole[-1:])
        assert isinstance(slow.receive(), Done)


def test_who_does_not_greet_is_closed(registry_folder: Path) -> None:
    short = {"handshake": 1e-3}
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, short),
        Peer(registry_folder) as peer,
    ):
        assert "no greeting" in str(refused(peer.welcome()))
        assert peer.receive() is None


def test_who_does_not_end_a_message_is_closed(registry_folder: Path) -> None:
    short = {"unfinished": 1e-3}
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, short) as served,
        served.peer() as peer,
    ):
        peer.socket.sendall(frame(ReadStatus(1))[:-1])
        assert isinstance(refused(peer.receive()), ProtocolError)
        assert peer.receive() is None


def test_an_idle_client_is_closed_and_comes_back(registry_folder: Path) -> None:
    short = {"idle": 1e-3}
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, short) as served,
        served.client() as client,
        served.peer() as peer,
    ):
        client.register_module(module("acme.m1"))
        assert peer.receive() is None  # so the client's is closed by now too
        client.register_module(module("acme.m2"))


def test_too_many_connections_are_refused(registry_folder: Path) -> None:
    limit = {"connections": 2}
    with daemon_of("tests.support.daemon_process", "serve_within", registry_folder, limit) as served:
        with served.peer(), served.peer(), served.client() as client, pytest.raises(BusyError, match="2"):
            client.register_module(module("acme.m"))
        with served.client() as client:
            client.register_module(module("acme.m"))


@pytest.mark.parametrize("limit", [{"requests": 8}, {"held_bytes": 8 * len(encode(module("acme.m10")))}])
def test_a_full_queue_is_refused_and_nothing_else_lost(registry_folder: Path, limit: dict[str, int]) -> None:
    slow = {"DSPY_REGISTRY_FAILPOINTS": "before_commit=sleep:200"}
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, limit, **slow) as served,
        served.peer() as peer,
        Registry(registry_folder) as registry,
    ):
        answers = peer.ask(*(registration(n, module(f"acme.m{n}"), oldest=1) for n in range(1, 65)))
        done = {answer.id for answer in answers if isinstance(answer, Done)}
        busy = {answer.id for answer in answers if isinstance(answer, Failed) and answer.kind == "BusyError"}
        assert len(done) >= 8
        assert done | busy == set(range(1, 65))
        assert busy
        assert {n for n in range(1, 65) if f"acme.m{n}" in registry} == done


def test_a_batch_beyond_the_limits_is_refused_without_being_held(registry_folder: Path) -> None:
    bounds = {"batch_modules": 10, "batch_bytes": 5000, "held_bytes": 7000}
    small, large = encode(module("acme.m")), encode(module("acme.m", examples=("x" * 1000,)))
    with (
        daemon_of("tests.support.daemon_process", "serve_within", registry_folder, bounds) as served,
        unimpressed(served),
    ):
        with served.peer() as peer, served.peer() as other:
            for request, modules in ((1, [small] * 11), (2, [large] * 5)):
                peer.send(*(Part([encoded]) for encoded in modules), RegisterMany(request, request, len(modules)))
                assert isinstance(refused(peer.receive()), InvalidModuleError)
            other.send(Part([large] * 4), ReadStatus(1))
            assert isinstance(other.receive(), Status)
            peer.send(Part([large] * 4), RegisterMany(3, 3, 4))
            assert isinstance(refused(peer.receive()), BusyError)
        # What was left behind counts no more once its connection is gone.
        with served.peer() as peer:
            peer.send(Part([large] * 4), RegisterMany(1, 1, 5))
            assert isinstance(refused(peer.receive()), ProtocolError)


def test_who_does_not_read_the_answers_is_not_read_either(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, unimpressed(served), served.peer() as peer:
        question = frame(ReadStatus(1)) * 1000
        peer.socket.settimeout(1.0)
        sent = 0
        with suppress(TimeoutError):
            while sent < 64 * 1024 * 1024:  # without an end it would take all of this, and hold as many answers
                sent += peer.socket.send(question)
        assert sent < 64 * 1024 * 1024


def test_limits_have_a_default_for_everything() -> None:
    assert Bounds() == Bounds(**msgspec.structs.asdict(Bounds()))
