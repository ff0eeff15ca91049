"""A later release adds fields at the end of stored arrays. This one reads them all the same."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from dspy_registry import registry_store
from dspy_registry.registry_store.codec import Sealed, SealedAlone
from dspy_registry.registry_store.errors import ProtocolError
from dspy_registry.registry_store.protocol import remembered_codec
from dspy_registry.registry_store.rollout import Plan, Rollout
from dspy_registry.registry_store.rollout_rows import rollout_codec, rollout_key
from dspy_registry.writer.daemon.requests import decode_rollout
from dspy_registry.writer.rollouts import RolloutRequest

MESSAGES = remembered_codec._decoded.__self__  # type: ignore[attr-defined]
"""Stored answers are messages, which clients of the daemon's own release read."""


def stored_kinds() -> dict[str, Any]:
    """The type of every value that is stored, by the codec's place."""
    found = {}
    for module in pkgutil.iter_modules(registry_store.__path__, f"{registry_store.__name__}."):
        if module.name.endswith("__main__"):
            continue
        for name, each in vars(importlib.import_module(module.name)).items():
            if isinstance(each, Sealed):
                each = each._decoded.__self__  # type: ignore[attr-defined]
            if isinstance(each, SealedAlone) and each is not MESSAGES:
                found[f"{module.name}.{name}"] = each._kind
    return found


def structs(kind: Any) -> Iterator[msgspec.inspect.StructType]:
    """Every struct in a type."""
    left, seen = [msgspec.inspect.type_info(kind)], set()
    while left:
        each = left.pop()
        if isinstance(each, msgspec.inspect.StructType):
            if each.cls in seen:
                continue
            seen.add(each.cls)
            yield each
        for field in getattr(each, "__struct_fields__", ()):
            parts = getattr(each, field)
            for part in parts if isinstance(parts, tuple) else (parts,):
                if isinstance(part, msgspec.inspect.Field):
                    left.append(part.type)
                elif isinstance(part, msgspec.inspect.Type):
                    left.append(part)


@pytest.mark.parametrize(("codec", "kind"), sorted(stored_kinds().items(), key=str))
def test_no_stored_value_refuses_fields_of_a_later_release(codec: str, kind: Any) -> None:
    assert [each.cls.__name__ for each in structs(kind) if each.forbid_unknown_fields] == [], codec


def test_there_are_stored_values() -> None:
    kinds = stored_kinds()
    assert len(kinds) > 10
    assert any(each.cls is Plan for kind in kinds.values() for each in structs(kind))


def test_a_rollout_of_a_later_release_is_read() -> None:
    rollout = Rollout("acme.Qa", "live", 1, 2, Plan(), 0, 0)
    row = msgspec.to_builtins(rollout)
    row[4] = [*row[4], "a later guard"]
    key = rollout_key("acme.Qa", "live")
    assert rollout_codec.load(rollout_codec.dump([*row, "a later field"], key, 2), key, 2) == rollout


def test_a_request_for_what_this_release_cannot_guard_is_refused() -> None:
    """A rollout must not go on without a guard that its operator asked for."""
    asked = RolloutRequest("acme.Qa", "live", "begin", 2, Plan())
    assert decode_rollout(msgspec.msgpack.encode(asked)) == asked
    plain = msgspec.to_builtins(asked)
    with pytest.raises(ProtocolError):
        decode_rollout(msgspec.msgpack.encode([*plain[:4], [*plain[4], "a later guard"]]))
