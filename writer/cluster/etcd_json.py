"""etcd's JSON gateway: what is sent, what comes back. Bytes travel in base64, as msgspec has them in JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.errors import (
    ClusterAccessError,
    ClusterFullError,
    ClusterUnavailableError,
    RegistryError,
)
from dspy_registry.writer.cluster.engine import CompactedError, Events, KeyValue, LeaseGoneError

# gRPC's status codes
_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _OUT_OF_RANGE, _UNAUTHENTICATED = 3, 5, 7, 8, 11, 16
_NOT_OURS: Final = ("authentication", "user name", "permission denied", "auth")


class Header(msgspec.Struct, frozen=True):
    """What every answer begins with. The gateway leaves zeros and empty values out, here and below."""

    cluster_id: int = 0
    revision: int = 0


class Pair(msgspec.Struct, frozen=True, gc=False):
    """A key with its value."""

    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    lease: int = 0


class Event(msgspec.Struct, frozen=True):
    """A change of a watch."""

    kv: Pair
    type: str = "PUT"


class Found(msgspec.Struct, frozen=True):
    """What a read found."""

    kvs: Sequence[Pair] = ()


class Response(msgspec.Struct, frozen=True):
    """One of a transaction's operations."""

    response_range: Found = Found()


class Streamed(msgspec.Struct, frozen=True):
    """A step of a watch, or the answer to a lease that is kept."""

    header: Header = Header()
    events: Sequence[Event] = ()
    compact_revision: int = 0
    canceled: bool = False
    cancel_reason: str = ""
    TTL: int = 0


class Answer(msgspec.Struct, frozen=True):
    """An answer of any kind. `error` None: it is not an error."""

    header: Header = Header()
    kvs: Sequence[Pair] = ()
    more: bool = False
    succeeded: bool = False
    responses: Sequence[Response] = ()
    result: Streamed = Streamed()
    ID: int = 0
    TTL: int = 0
    token: str = ""
    error: Any = None


encode = msgspec.json.Encoder().encode
decode: Final = msgspec.json.Decoder(Answer, strict=False).decode  # numbers of 64 bits come as texts


def range_end(prefix: bytes) -> bytes:
    """The first key behind all keys with a prefix."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b"\0"


def transaction(
    expected: Mapping[bytes, int],
    puts: Mapping[bytes, bytes],
    reads: Sequence[bytes],
    leased: Mapping[bytes, int],
    below: Mapping[bytes, int],
    removed: Sequence[bytes],
) -> dict[str, Any]:
    """The body of a transaction."""
    return {
        "compare": [
            {"key": key, "target": "MOD", "result": result, "mod_revision": str(revision)}
            for result, keys in (("EQUAL", expected), ("LESS", below))
            for key, revision in keys.items()
        ],
        "success": [
            {"request_put": {"key": key, "value": value, "lease": str(leased.get(key, 0))}}
            for key, value in puts.items()
        ]
        + [{"request_delete_range": {"key": prefix, "range_end": range_end(prefix)}} for prefix in removed],
        "failure": [{"request_range": {"key": key}} for key in reads],
    }


def key_value(pair: Pair) -> KeyValue:
    """A key with its value."""
    return KeyValue(pair.key, pair.value, pair.mod_revision, pair.lease)


def found_in(answer: Answer) -> dict[bytes, KeyValue]:
    """What the reads of a transaction found."""
    return {pair.key: key_value(pair) for response in answer.responses for pair in response.response_range.kvs}


def step_of(answer: Answer) -> Events:
    """A step of a watch. Raises CompactedError, ClusterAccessError, ClusterUnavailableError where it has ended."""
    step = answer.result
    if step.compact_revision:
        raise CompactedError(f"revisions before {step.compact_revision} are compacted")
    if step.canceled:
        reason = step.cancel_reason or "no reason given"
        kind = ClusterAccessError if "permission" in reason or "auth" in reason else ClusterUnavailableError
        raise kind(f"the cluster has cancelled the watch: {reason}.")
    return Events([_change(event) for event in step.events], step.header.revision)


def _change(event: Event) -> KeyValue:
    pair = event.kv
    return KeyValue(pair.key, None if event.type == "DELETE" else pair.value, pair.mod_revision, pair.lease)


def problem_of(answer: Any) -> Exception:
    """The error that an answer of the gateway stands for."""
    outer = answer if isinstance(answer, Mapping) else {}
    inner = outer.get("error")
    told = inner if isinstance(inner, Mapping) else outer
    message = str(told.get("message") or told.get("error") or "an error without a text")
    return _problem(int(told.get("grpc_code") or told.get("code") or 0), message.removeprefix("etcdserver: "))


def _problem(code: int, message: str) -> Exception:
    if code == _OUT_OF_RANGE and "compacted" in message:
        return CompactedError(message)
    if code == _NOT_FOUND and "lease" in message:
        return LeaseGoneError(message)
    if code == _EXHAUSTED and "space" in message:
        return ClusterFullError(f"the cluster takes nothing more: {message}.")
    if code in (_DENIED, _UNAUTHENTICATED) or (code == _INVALID and any(word in message for word in _NOT_OURS)):
        return ClusterAccessError(f"the cluster does not admit this host: {message}.")
    if code == _INVALID:
        return RegistryError(f"the cluster refuses a request of this release: {message}.")
    return ClusterUnavailableError(f"the cluster cannot answer now: {message}.")
