"""etcd's JSON gateway: what is sent, what comes back. Bytes travel in base64, numbers of 64 bits as texts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dspy_registry.registry_store.errors import (
    ClusterAccessError,
    ClusterFullError,
    ClusterUnavailableError,
    RegistryError,
)
from dspy_registry.writer.cluster.engine import CompactedError, KeyValue, LeaseGoneError

# gRPC's status codes
_INVALID, _NOT_FOUND, _DENIED, _EXHAUSTED, _OUT_OF_RANGE, _UNAUTHENTICATED = 3, 5, 7, 8, 11, 16
_NOT_OURS: Final = ("authentication", "user name", "permission denied", "auth")


def text(data: bytes) -> str:
    """Bytes as the gateway takes them."""
    return base64.b64encode(data).decode("ascii")


def data(encoded: str | None) -> bytes:
    """Bytes that the gateway gave. It leaves empty ones out."""
    return base64.b64decode(encoded or "")


def number(plain: Mapping[str, Any], name: str) -> int:
    """A number. The gateway leaves zeros out."""
    return int(plain.get(name) or 0)


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
            {"key": text(key), "target": "MOD", "result": result, "mod_revision": str(revision)}
            for result, keys in (("EQUAL", expected), ("LESS", below))
            for key, revision in keys.items()
        ],
        "success": [
            {"request_put": {"key": text(key), "value": text(value), "lease": str(leased.get(key, 0))}}
            for key, value in puts.items()
        ]
        + [{"request_delete_range": {"key": text(prefix), "range_end": text(range_end(prefix))}} for prefix in removed],
        "failure": [{"request_range": {"key": text(key)}} for key in reads],
    }


def key_value(plain: Mapping[str, Any]) -> KeyValue:
    """A key with its value."""
    return KeyValue(data(plain["key"]), data(plain.get("value")), number(plain, "mod_revision"), number(plain, "lease"))


def found_in(answer: Mapping[str, Any]) -> dict[bytes, KeyValue]:
    """What the reads of a transaction found."""
    pairs = [
        key_value(plain)
        for response in answer.get("responses", ())
        for plain in response.get("response_range", {}).get("kvs", ())
    ]
    return {pair.key: pair for pair in pairs}


def event(plain: Mapping[str, Any]) -> KeyValue:
    """A change of a watch."""
    kv = plain["kv"]
    is_gone = plain.get("type") == "DELETE"
    return KeyValue(
        data(kv["key"]), None if is_gone else data(kv.get("value")), number(kv, "mod_revision"), number(kv, "lease")
    )


def problem_of(answer: Mapping[str, Any]) -> Exception:
    """The error that an answer of the gateway stands for."""
    inner = answer.get("error")
    told = inner if isinstance(inner, Mapping) else answer
    message = str(told.get("message") or told.get("error") or "an error without a text")
    return _problem(number(told, "grpc_code") or number(told, "code"), message.removeprefix("etcdserver: "))


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
