"""The registry and the stores that people would use instead, each with its best settings."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.stores.files import DiskCache, RocksDict, SQLite
from benchmarks.stores.peer import Opening, Peer
from benchmarks.stores.servers import Manager, Redis
from benchmarks.stores.shared_memory import UltraDictPeer, UltraDictStructs
from dspy_registry import Registry

OURS: Final = "registry"

PEERS: Final[tuple[type[Peer], ...]] = (
    Redis,
    Manager,
    SQLite,
    DiskCache,
    UltraDictPeer,
    UltraDictStructs,
    RocksDict,
)


def registry_opening(path: Path) -> Opening:
    """How a process opens and reads the registry."""
    return Opening(OURS, partial(Registry, path), "store.get_module({})")


__all__ = ["OURS", "PEERS", "Opening", "Peer", "SQLite", "registry_opening"]
