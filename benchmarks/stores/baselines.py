"""The shortest code by hand. Comparing it with the registry shows what the registry itself costs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import lmdb
import msgspec

from benchmarks.datasets import MAP_SIZE
from dspy_registry import ModuleInfo

try:  # the quicker module, which the registry uses too
    from isal.isal_zlib import crc32
except ImportError:
    from zlib import crc32

checksum = crc32

V = TypeVar("V")


class PlainDict(Generic[V]):
    """A plain Python class with a dict: no sharing, no freshness."""

    def __init__(self, d: dict[str, V]) -> None:
        self._d = d

    def get(self, name: str) -> V:
        return self._d[name]


class HandWritten:
    """py-lmdb and msgspec with nothing around them: begin (a spare transaction), get, decode, abort.

    Values are copied out (`buffers=False`), which is the faster way for values of this size.
    """

    def __init__(self, path: Path) -> None:
        self._env = lmdb.open(str(path), map_size=MAP_SIZE, readonly=True, max_spare_txns=4, readahead=False)
        self._begin: Callable[[], Any] = self._env.begin
        self._decode = msgspec.msgpack.Decoder(ModuleInfo).decode

    def get(self, name: str) -> ModuleInfo:
        txn = self._begin()
        info = self._decode(txn.get(name.encode()))
        txn.abort()
        return info

    def get_checked(self, name: str) -> ModuleInfo:
        """As `get`, but it also computes a CRC-32 of the value, as the registry does."""
        txn = self._begin()
        value = txn.get(name.encode())
        checksum(value)
        info = self._decode(value)
        txn.abort()
        return info

    def held(self) -> Held:
        """Reads through one transaction."""
        return Held(self._begin(), self._decode)

    def close(self) -> None:
        self._env.close()


class Held:
    """Get and decode in the open transaction."""

    def __init__(self, txn: Any, decode: Any) -> None:
        self._txn = txn
        self._get = txn.get
        self._decode = decode

    def get(self, name: str) -> ModuleInfo:
        info: ModuleInfo = self._decode(self._get(name.encode()))
        return info

    def close(self) -> None:
        self._txn.abort()
