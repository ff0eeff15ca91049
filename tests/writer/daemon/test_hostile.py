"""Nothing a client sends makes the daemon die or the registry wrong."""

from __future__ import annotations

import math
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import LabelUpdate, ProtocolError, Registry
from dspy_registry.registry_store import nesting
from dspy_registry.registry_store import protocol as wire
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.nesting import DEEPEST, excess
from dspy_registry.registry_store.protocol import (
    VERSION,
    ApplyDiscovery,
    Done,
    Failed,
    FrameReader,
    Hello,
    Part,
    ReadStatus,
    Register,
    RegisterMany,
    ReportUsage,
    SetAlias,
    SetImplications,
    SetLabels,
    Status,
    Unregister,
    frame,
)
from tests.conftest import violations
from tests.support.daemon_process import Peer, Served, daemon, module, refused, registration, unimpressed


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One daemon for all of these tests: what `unimpressed` finds after each holds for the next."""
    folder = tmp_path_factory.mktemp("hostile") / "registry"
    with daemon(folder) as served:
        yield served
    assert violations(folder) == []


DEEP = b"\x91" * 1_000_000 + b"\x90"


@pytest.mark.parametrize(
    ("sent", "number"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "1195725856"),
        (b"\xff\xff\xff\xff", "4294967295"),
        (struct.pack(">I", wire.MAX_HELLO_BYTES + 1), str(wire.MAX_HELLO_BYTES)),
        (struct.pack(">I", 0), ""),
        (struct.pack(">I", 3) + b"\xc1\xc1\xc1", ""),
        (struct.pack(">I", 900) + DEEP[:900], ""),
        (frame(Hello(VERSION, b"short")), "5"),
        (frame(ReadStatus(1)), ""),
    ],
)
def test_a_bad_greeting_is_answered_and_closed(served: Served, sent: bytes, number: str) -> None:
    with unimpressed(served), Peer(served.path) as peer:
        peer.socket.sendall(sent)
        error = refused(peer.welcome())
        assert isinstance(error, ProtocolError)
        assert number in error.message
        assert peer.receive() is None


def test_another_version_is_refused_naming_both(served: Served) -> None:
    newer = b"\x94\x00" + msgspec.msgpack.encode(wire.VERSION + 1) + b"\xc4\x10" + bytes(16) + b"\xa5later"
    with unimpressed(served), Peer(served.path) as peer:
        peer.socket.sendall(struct.pack(">I", len(newer)) + newer)
        error = refused(peer.welcome())
        assert isinstance(error, ProtocolError)
        assert re.search(rf"{wire.VERSION + 1}\b.*\b{wire.VERSION}\b", error.message)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x92\x63\x01",  # an unknown message
        b"\x93\x04\x01\x01",  # a field missing
        b"\x95\x04\x01\x01\xa1x\x00",  # a field that is not what it should be
        b"\x96\x04\x01\x01\xa1x\x90\x00",  # a field too many
        b"\x95\x04\x01\x01\xa1x\xdc\x00\x41" + bytes(65),  # repeats more than a window
        b"\x94\x04\x01\x01\xa2\xff\xfe",  # not UTF-8
        b"\x94\x04\x01\x01" + DEEP,
        DEEP,
        b"\x94\x04\x01\x01\xdf\xff\xff\xff\xff",  # a map of four thousand million
    ],
)
def test_a_bad_message_is_answered_and_closed(served: Served, payload: bytes) -> None:
    with unimpressed(served), served.peer() as peer:
        peer.socket.sendall(struct.pack(">I", len(payload)) + payload)
        error = refused(peer.receive())
        assert isinstance(error, ProtocolError)
        assert peer.receive() is None


def test_a_frame_too_long_is_refused_before_it_comes(served: Served) -> None:
    with unimpressed(served), served.peer() as peer:
        peer.socket.sendall(struct.pack(">I", wire.MAX_FRAME_BYTES + 1))
        assert isinstance(refused(peer.receive()), ProtocolError)


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\x90",
        b"\x91\x01",
        encode(module("acme.m"))[:-1],
        b"\x99" + encode(module("acme.m"))[1:-1] + b"\x81\xa1k" + DEEP,
        b"\x9a" + encode(module("acme.m"))[1:] + DEEP,
        b"\x9a" + encode(module("acme.m"))[1:] + b"\x81\xa1k" * 300_000 + b"\x80",
    ],
    ids=["nothing", "empty", "a number", "cut", "deep inside", "deep in a field nobody knows", "deep maps"],
)
def test_a_module_that_cannot_be_read_is_refused(served: Served, encoded: bytes) -> None:
    with unimpressed(served):
        with served.peer() as peer:
            peer.send(Register(1, 1, encoded))
            assert isinstance(refused(peer.receive()), ProtocolError)
        with served.peer() as peer:
            peer.send(Part([encode(module("acme.good")), encoded]), RegisterMany(1, 1, 2))
            assert isinstance(refused(peer.receive()), ProtocolError)


def labels(*updates: LabelUpdate) -> bytes:
    return msgspec.msgpack.encode(updates)


@pytest.mark.parametrize(
    "message",
    [
        registration(1, module("")),
        registration(1, module("x" * 256)),
        registration(
            1, module("acme.m", metadata={"deep": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]})
        ),
        registration(1, module("acme.m", estimated_duration=-1)),
        registration(1, module("acme.m"), expected_version=3),
        registration(1, module("acme.m"), expected_version=-(2**63)),
        Unregister(1, 1, "acme.none"),
        Unregister(1, 1, ""),
        Unregister(1, 1, "\0" * 600),
        SetAlias(1, 1, "", "dspy.Predict"),
        SetAlias(1, 1, "alias", "acme.none"),
        SetAlias(1, 1, "x" * 600, "dspy.Predict"),
        SetImplications(1, 1, {"a": ("b",), "b": ("a",)}),
        SetImplications(1, 1, {"": ("",)}),
        SetImplications(1, 1, {"x" * 600: ("y",)}),
        SetImplications(1, 1, {f"w{n}": (f"w{n + 1}",) for n in range(2_000)}),
        SetImplications(1, 1, {f"w{n}": (f"w{n + 1}",) for n in range(40_000)}),
        SetImplications(1, 1, {f"w{n}": (f"w{n + 1}",) for n in range(257)}),
        SetImplications(1, 1, {"a": tuple(f"w{n}" for n in range(65))}),
        SetLabels(1, 1, b""),
        SetLabels(1, 1, b"\xc1"),
        SetLabels(1, 1, DEEP),
        SetLabels(1, 1, b"\x91\x81\xa1k" + DEEP),
        SetLabels(1, 1, labels(LabelUpdate("acme.none", "live", 1))),
        SetLabels(1, 1, labels(LabelUpdate("dspy.Predict", "latest", 1))),
        SetLabels(1, 1, labels(LabelUpdate("dspy.Predict", "x" * 600, {1: math.nan, 2: -1.0, -3: 1.0}))),
        SetLabels(1, 1, labels(LabelUpdate("dspy.Predict", "live", dict.fromkeys(range(5_000), 1.0)))),
        SetLabels(1, 1, labels(*[LabelUpdate("dspy.Predict", "live", 1)] * 20_000)),
        RegisterMany(1, 1, 5),
        RegisterMany(1, 1, -1),
        ApplyDiscovery(1, 1, 0, b"\xc1"),
        ApplyDiscovery(1, 1, 0, DEEP),
        ApplyDiscovery(1, 1, 0, b"\x81\xa7modules\x91\x91" + b"\x81\xa1k" * 300_000),
        ReportUsage(1, b"\xc1\xc1"),
        ReportUsage(1, DEEP),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_request_that_makes_no_sense_fails_alone(served: Served, message: Any) -> None:
    with unimpressed(served), served.peer() as peer:
        peer.send(message)
        assert isinstance(peer.receive(), Failed)


def test_request_numbers_of_any_kind_do_no_harm(registry_folder: Path) -> None:
    numbers = [(0, 0), (-(2**63), 1), (2**63 - 1, 2**63 - 1), (5, -1), (7, 2**62)]
    with daemon(registry_folder) as served, served.peer() as peer, Registry(registry_folder) as registry:
        for index, (request, oldest) in enumerate(numbers):
            peer.send(registration(request, module(f"acme.m{index}"), oldest=oldest))
            answer = peer.receive()
            assert isinstance(answer, Done) == (f"acme.m{index}" in registry)


def test_noise_is_survived(registry_folder: Path) -> None:
    """Frames that begin sound and are then changed at random."""
    dice = random.Random(20240229)
    sound = [
        Register(1, 1, encode(module("acme.m", metadata={"a": [1, {"b": None}], "c": 1.5}))),
        Part([encode(module("acme.m"))]),
        RegisterMany(1, 1, 1),
        Unregister(1, 1, "dspy.none"),
        SetImplications(1, 1, {"a": ("b", "c")}),
        ApplyDiscovery(1, 1, 0, msgspec.msgpack.encode({"modules": [], "probed": ["acme"]})),
        ReadStatus(1),
        ReportUsage(1, b"\x92\x01\x80"),
    ]
    with daemon(registry_folder) as served:
        for _ in range(400):
            payload = bytearray(frame(dice.choice(sound))[4:])
            for _ in range(dice.randint(1, 4)):
                payload[dice.randrange(len(payload))] = dice.randrange(256)
            with served.peer() as peer:
                peer.socket.sendall(struct.pack(">I", len(payload)) + payload + frame(ReadStatus(2)))
                answers = [peer.receive()]
                while answers[-1] is not None and not isinstance(answers[-1], Status):
                    answers.append(peer.receive())
        with served.client() as client:
            assert client.status().pid == served.pid


# The parts that guard


def nested(depth: int, kind: bytes) -> bytes:
    return kind * depth + b"\xc0"


@pytest.mark.parametrize(
    "kind", [b"\x91", b"\x81\xa1k", b"\xdc\x00\x01", b"\xdd\0\0\0\1", b"\xde\0\1\xa1k", b"\x92\xc0"]
)
def test_depth_is_found_in_every_kind_of_container(kind: bytes) -> None:
    padding = b"\x91\xc0" * 5000  # so many that counting them does not settle it
    sound = b"\x92" + b"\xdc" + struct.pack(">H", 5000) + padding
    assert excess(sound + nested(DEEPEST - 1, kind)) != nesting.DEEP
    assert excess(sound + nested(DEEPEST + 1, kind)) == nesting.DEEP


NUMBERS = [None, True, False, 7, -7, 200, 70000, 2**40, -200, -70000, -(2**40), 1.5]
LENGTHS = (1, 2, 4, 5, 8, 16, 17, 31, 32, 300, 70000)


@pytest.mark.parametrize(
    "scalar",
    NUMBERS
    + ["x" * length for length in LENGTHS]
    + [b"\x91" * length for length in LENGTHS]
    + [msgspec.msgpack.Ext(5, b"\x91" * length) for length in LENGTHS],
    ids=lambda scalar: f"{type(scalar).__name__}-{str(scalar)[:20]}",
)
def test_depth_skips_every_kind_of_scalar(scalar: Any) -> None:
    sound = msgspec.msgpack.encode([[scalar], [[]] * 5000])
    assert excess(sound) != nesting.DEEP
    assert excess(sound[:-1]) != nesting.DEEP
    assert excess(b"\x92" + sound + nested(DEEPEST, b"\x91")) == nesting.DEEP


def test_frames_come_out_however_they_arrive() -> None:
    payloads = [b"", b"a", b"bc" * 100, b"\0" * 1000]
    stream = b"".join(struct.pack(">I", len(payload)) + payload for payload in payloads)
    for step in (1, 2, 3, 5, 103, len(stream)):
        reader = FrameReader(1000)
        found = [p for at in range(0, len(stream), step) for p in reader.feed(stream[at : at + step])]
        assert found == payloads
        assert not reader.is_inside
