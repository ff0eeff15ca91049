"""A registry to be damaged, and raw access to its stored bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import Change, ModuleInfo, Provenance, RegistryWriter
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import State, change_codec, state_codec
from dspy_registry.registry_store.codec import encode, open_record, seal_record
from dspy_registry.registry_store.layers import Layer
from dspy_registry.registry_store.layout import FORMAT_VERSION
from dspy_registry.registry_store.sharing import attach, detach
from tests.conftest import violations

Put = Callable[[str, bytes, bytes | None], None]
Get = Callable[[str, bytes], bytes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A registry with something of everything in it, to be damaged."""
    path = tmp_path / "damaged"
    with RegistryWriter(path) as writer:
        commit = writer.store.committer.commit
        writer.set_alias("cot", "dspy.ChainOfThought")
        for duration in range(20):
            writer.register_module(ModuleInfo("a.Twenty", estimated_duration=duration, capabilities=("x",)))
        writer.set_implications({"x": ("y",), "y": ("z",)})
        writer.register_module(ModuleInfo("a.Gone"))
        writer.unregister_module("a.Gone")
        commit(lambda draft: draft.declare("a.Layered", Layer("manifest:b.toml", {"category": "mine"})))
        commit(lambda draft: draft.declare("a.Layered", Layer("discovered", {"metadata": {"a": 1}})))
        writer.register_module(ModuleInfo("dspy.Predict", category="other"))
    assert violations(path) == []
    return path


@contextmanager
def opened(folder: Path) -> Iterator[tuple[Get, Put]]:
    """Raw access to the stored bytes, past everything that keeps them right."""
    environment = attach(folder, writable=True)
    try:
        with environment.write_gate, environment.lmdb.begin(write=True) as txn:

            def get(database: str, key: bytes) -> bytes:
                value: bytes = txn.get(key, db=getattr(environment.dbs, database))
                return value

            def put(database: str, key: bytes, value: bytes | None) -> None:
                handle = getattr(environment.dbs, database)
                assert txn.delete(key, db=handle) if value is None else txn.put(key, value, db=handle)

            yield get, put
    finally:
        detach(environment)


@contextmanager
def behind(writer: RegistryWriter) -> Iterator[tuple[Any, Any]]:
    """A raw transaction and the databases, under an open writer. It is made to count the transaction as its own."""
    environment = writer.store.environment
    with environment.write_gate:
        with environment.lmdb.begin(write=True) as txn:
            yield txn, environment.dbs
        writer.store.committer._ownership.note(environment.newest_transaction())


def flipped(value: bytes, at: int = 3) -> bytes:
    """The value with one bit turned over."""
    return value[:at] + bytes([value[at] ^ 0x10]) + value[at + 1 :]


def rewritten(get: Get, name: str, /, **changes: Any) -> bytes:
    """The record of a module with other fields or another provenance."""
    stored = open_record(get("modules", name.encode()), name)
    kept = {key: changes.pop(key) for key in tuple(changes) if key in Provenance.__struct_fields__}
    info = msgspec.structs.replace(stored.info, **changes)
    return seal_record(encode(info), msgspec.structs.replace(stored.provenance, **kept), FORMAT_VERSION)


def sequence_of(get: Get, name: str) -> int:
    """A module's sequence, from its record."""
    return open_record(get("modules", name.encode()), name).provenance.sequence


def state(get: Get) -> State:
    """The head of the registry."""
    loaded: State = state_codec.load(get("meta", layout.META_STATE), layout.META_STATE, FORMAT_VERSION)
    return loaded


def posting(term: str, block: int = 0) -> bytes:
    """The key of one block of a posting."""
    return layout.posting_key(term.encode(), block)


def change_at(get: Get, revision: int) -> Change:
    """The logged change of a revision."""
    key = layout.revision_key(revision)
    loaded: Change = change_codec.load(get("changes", key), key, FORMAT_VERSION)
    return loaded


def rewrite_change(get: Get, put: Put, revision: int, **changes: Any) -> None:
    """Put a change with other fields in the place of a logged one."""
    changed = msgspec.structs.replace(change_at(get, revision), **changes)
    key = layout.revision_key(revision)
    put("changes", key, change_codec.dump(changed, key, FORMAT_VERSION))
