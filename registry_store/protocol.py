"""Messages between a client and the writer daemon, and how they are framed.

    frame = length of the payload (4 bytes, big-endian), payload (one msgpack message, at most MAX_FRAME_BYTES)

A client begins with Hello, and the daemon answers Welcome. Then every request gets one answer with its id, in any
order. Modules travel as encoded bytes inside a message, so a message itself nests only two deep. `nesting` refuses
deeper ones without recursion.

Evolution: both sides must have the same VERSION. Only Hello and Welcome are read across versions, and new fields of
these two are added at the end only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.daemon_status import DaemonStatus as DaemonStatus
from dspy_registry.registry_store.errors import ProtocolError
from dspy_registry.registry_store.framing import HEADER_BYTES as HEADER_BYTES
from dspy_registry.registry_store.framing import FrameReader as FrameReader
from dspy_registry.registry_store.layout import MAX_RECORD_BYTES, REQUESTS
from dspy_registry.registry_store.messages import HealthRequest as HealthRequest
from dspy_registry.registry_store.messages import Message
from dspy_registry.registry_store.messages import OpenCircuit as OpenCircuit
from dspy_registry.registry_store.messages import ReportedOutcome as ReportedOutcome
from dspy_registry.registry_store.messages import ReportOutcomes as ReportOutcomes
from dspy_registry.registry_store.messages import ResetCircuit as ResetCircuit
from dspy_registry.registry_store.policy import Policy

VERSION: Final = 2
"""1: release 0.1.0. 2: reports by version, and changes that release did not know.

A client of the other version is refused by name. A reporter then keeps its calls, and sends them when the daemon is of
its own release.
"""
CLIENT_ID_BYTES: Final = 16

MAX_FRAME_BYTES: Final = MAX_RECORD_BYTES + 64 * 1024
"""Of a client's message: one record of the largest size, and the rest of the message."""
MAX_HELLO_BYTES: Final = 1024
MAX_ANSWER_BYTES: Final = 256 * 1024 * 1024
"""Of a daemon's message, which may name every module of a large report."""
PART_BYTES: Final = 128 * 1024
"""A batch upload is cut into parts of about this size, so that others wait only briefly while one is received."""
WINDOW: Final = 64
"""How many unanswered requests a client may have, and how many answers of each client the reply cache holds."""


# The greeting


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """The first message of a client. `client` is its id: 16 bytes that it chooses, the same when it reconnects."""

    version: int
    client: bytes


class Welcome(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """The daemon's greeting; `pid` is its process."""

    version: int
    pid: int


# Requests. `id` counts up from 1 for each client. `oldest` is the lowest id whose answer the client still needs.

Repeats: TypeAlias = Annotated[tuple[int, ...], Meta(max_length=WINDOW)]
"""Ids of earlier requests of this client that asked for the same and were never answered.

The request that names them is a new one. It may fail only because one of them succeeded. If the effect of that one is
still in force, the new request is answered with success.
"""


class Register(Message, frozen=True, tag=1):
    """`module` is an encoded ModuleInfo; `expected_version` None means any."""

    id: int
    oldest: int
    module: bytes
    expected_version: int | None = None
    repeats: Repeats = ()


class Part(Message, frozen=True, tag=2):
    """Encoded modules of a batch upload, or pieces of a program; its request follows. Not answered."""

    modules: list[bytes]


class RegisterMany(Message, frozen=True, tag=3):
    """Register the `count` modules of all parts since the last batch upload, in one commit or not at all."""

    id: int
    oldest: int
    count: int


class Unregister(Message, frozen=True, tag=4):
    """Remove a module."""

    id: int
    oldest: int
    name: str
    repeats: Repeats = ()


class SetAlias(Message, frozen=True, tag=5):
    """Declare an alias."""

    id: int
    oldest: int
    alias: str
    name: str


class RemoveAlias(Message, frozen=True, tag=6):
    """Remove an alias."""

    id: int
    oldest: int
    alias: str
    repeats: Repeats = ()


class SetImplications(Message, frozen=True, tag=7):
    """Replace the implications declared by clients."""

    id: int
    oldest: int
    implications: dict[str, tuple[str, ...]]


class ApplyDiscovery(Message, frozen=True, tag=8):
    """Register the modules of an encoded DiscoveryReport. They came as parts before, as for RegisterMany."""

    id: int
    oldest: int
    count: int
    report: bytes


class Release(Message, frozen=True, tag=12):
    """End an override. A module that is not overridden stays as it is."""

    id: int
    oldest: int
    name: str


class Rename(Message, frozen=True, tag=13):
    """Register a module under another name."""

    id: int
    oldest: int
    name: str
    new_name: str
    repeats: Repeats = ()


class Publish(Message, frozen=True, tag=19):
    """Publish a program. The `count` pieces of its document came as parts before; 0: it is stored already.

    `publication` is an encoded Publication; `expected_version` None means any.
    """

    id: int
    oldest: int
    count: int
    publication: bytes
    expected_version: int | None = None
    repeats: Repeats = ()


class ReadStatus(Message, frozen=True, tag=9):
    """The state of the daemon: its pid, revision, queue lengths and errors."""

    id: int


class ReportUsage(Message, frozen=True, tag=10):
    """A batch of usage statistics, encoded as `usage` says. Answered with Done."""

    id: int
    batch: bytes


class ResetUsage(Message, frozen=True, tag=11):
    """Forget the statistics of a module, or of one version of it; None: of all."""

    id: int
    oldest: int
    name: str
    version: int | None = None


class SetLabels(Message, frozen=True, tag=16):
    """Set, move and remove labels in one commit. `updates` is an encoded tuple of LabelUpdate."""

    id: int
    oldest: int
    updates: bytes
    repeats: Repeats = ()


class SetPolicy(Message, frozen=True, tag=20):
    """Set a client's policy of a pattern; None: remove it, if there is one."""

    id: int
    oldest: int
    pattern: str
    policy: Policy | None


class SteerRollout(Message, frozen=True, tag=21):
    """Begin, pause, resume or abort a guarded rollout. `request` is an encoded RolloutRequest."""

    id: int
    oldest: int
    request: bytes


ChangeRequest: TypeAlias = (
    Register
    | RegisterMany
    | Unregister
    | SetAlias
    | RemoveAlias
    | SetImplications
    | ApplyDiscovery
    | ResetUsage
    | Release
    | Rename
    | SetPolicy
    | SetLabels
    | Publish
    | SteerRollout
)
Request: TypeAlias = ChangeRequest | Part | ReadStatus | ReportUsage | HealthRequest


# Answers


class Done(Message, frozen=True, tag=1):
    """The request has taken effect. Readers see it from `revision` on."""

    id: int
    revision: int


class Failed(Message, frozen=True, tag=2):
    """The request had no effect. `id` 0: the whole connection is refused. See `wire_errors`.

    `was_overtaken`: it came after a later request of the same client. The client may send it again with a new id.
    """

    id: int
    kind: str
    arguments: tuple[str | int | tuple[str, ...] | None, ...] = ()
    remedy: str = ""
    was_overtaken: bool = False


class Applied(Message, frozen=True, tag=3):
    """What ApplyDiscovery did."""

    id: int
    revision: int
    declared: tuple[str, ...] = ()
    withdrawn: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class Versioned(Message, frozen=True, tag=19):
    """What Publish did: this version has the program, visible from `revision` on."""

    id: int
    revision: int
    version: int


class BatchProgress(Message, frozen=True, tag=4):
    """How many modules of a batch upload have been looked at; 0 of 1 for any other request.

    The daemon sends it again and again for every request that waits, and at last the answer.
    """

    id: int
    done: int
    total: int


Progress: TypeAlias = Callable[[int, int], None]
"""A function that is called with how much is done and the total. It is called often, so it must be quick."""


class Status(Message, frozen=True, tag=5):
    """The answer to ReadStatus."""

    id: int
    status: DaemonStatus


Effect: TypeAlias = Done | Failed | Applied | Versioned
"""The answers to a change. The reply cache holds them, so that a request that arrives twice gets the same answer."""
Answer: TypeAlias = Effect | BatchProgress | Status


class Remembered(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A client's last answers, as stored. `revision` shows which clients have been silent longest."""

    revision: int
    answers: tuple[Effect, ...]


remembered_codec = Sealed(Remembered, "the answers given to a client", REQUESTS)

# Encoding

_encode = msgspec.msgpack.Encoder().encode
decode_hello = msgspec.msgpack.Decoder(Hello).decode
decode_request = msgspec.msgpack.Decoder(Request).decode
_decode_welcome = msgspec.msgpack.Decoder(Welcome).decode
_decode_answer = msgspec.msgpack.Decoder(Answer).decode
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding raises for malformed bytes."""


def frame(message: msgspec.Struct) -> bytes:
    """A message as it goes over the wire."""
    payload = _encode(message)
    return len(payload).to_bytes(HEADER_BYTES, "big") + payload


def read_welcome(payload: bytes) -> Welcome | Failed:
    """The daemon's greeting or refusal. Raises ProtocolError."""
    try:
        return _decode_welcome(payload) if payload[1:2] == b"\0" else _decode_failed(payload)
    except UNREADABLE as error:
        raise ProtocolError(f"the daemon's greeting is not understood: {error}.") from error


def _decode_failed(payload: bytes) -> Failed:
    answer = read_answer(payload)
    if not isinstance(answer, Failed):
        raise ProtocolError(f"the daemon answered {type(answer).__name__} before it was asked.")
    return answer


def read_answer(payload: bytes) -> Answer:
    """An answer of the daemon. Raises ProtocolError."""
    try:
        answer: Answer = _decode_answer(payload)
    except UNREADABLE as error:
        raise ProtocolError(f"an answer of the daemon is not understood: {error}.") from error
    return answer


def version_mismatch(client: int, daemon: int) -> ProtocolError:
    """The error if client and daemon have different protocol versions."""
    return ProtocolError(
        f"the client speaks protocol version {client}, the daemon {daemon}.",
        remedy="Install the same release of dspy-module-registry on both sides, and restart the older one.",
    )
