"""The two paths of a read, rebuilt step by step. Each class does one thing more than the class before it."""

from __future__ import annotations

from collections import deque
from math import inf
from pathlib import Path
from time import monotonic as _monotonic
from typing import Any, Final

import lmdb
import msgspec

from benchmarks.datasets import MAP_SIZE
from benchmarks.stores.baselines import checksum
from dspy_registry import ModuleInfo
from dspy_registry.registry_store.revision import RevisionFile, private_word


class Call:
    """Only the call."""

    def get(self, name: str) -> str:
        return name


class Lookup:
    """Adds a look-up in a dict."""

    def __init__(self, records: dict[str, ModuleInfo]) -> None:
        self._records = records

    def get(self, name: str) -> ModuleInfo:
        return self._records[name]


class Verified:
    """Adds a comparison of the shared revision word with the word at which the dict is valid."""

    def __init__(self, records: dict[str, ModuleInfo], folder: Path) -> None:
        self._records = records
        self._word: Any = RevisionFile(folder).word
        self._valid = private_word(self._word[()])

    def get(self, name: str) -> ModuleInfo:
        if self._word == self._valid:
            return self._records[name]
        raise AssertionError("nobody writes here")


class Encoded:
    """The call, and the name as bytes."""

    def get(self, name: str) -> bytes:
        return name.encode()


class Begun:
    """Adds beginning and aborting a read transaction. LMDB reuses a spare one."""

    def __init__(self, folder: Path) -> None:
        self._env = lmdb.open(str(folder), map_size=MAP_SIZE, readonly=True, max_spare_txns=4, readahead=False)
        self._begin: Any = self._env.begin
        self._decode = msgspec.msgpack.Decoder(ModuleInfo).decode

    def get(self, name: str) -> object:
        key = name.encode()
        txn = self._begin()
        txn.abort()
        return key

    def got(self, name: str) -> object:
        """Adds looking up the value and copying it out."""
        txn = self._begin()
        value = txn.get(name.encode())
        txn.abort()
        return value

    def checked(self, name: str) -> object:
        """Adds computing the checksum."""
        txn = self._begin()
        value = txn.get(name.encode())
        checksum(value)
        txn.abort()
        return value

    def decoded(self, name: str) -> ModuleInfo:
        """Adds decoding the record."""
        txn = self._begin()
        value = txn.get(name.encode())
        checksum(value)
        info = self._decode(value)
        txn.abort()
        return info

    def close(self) -> None:
        self._env.close()


class Guarded(Begun):
    """Adds what makes a first read right: the two words, the clock, and a place in the list that a fork waits for."""

    def __init__(self, folder: Path, registry: Path) -> None:
        super().__init__(folder)
        file = RevisionFile(registry)
        self._word: Any = file.word
        self._usage_word: Any = file.usage_word
        self._followed, self._usage_seen = self._word[()], self._usage_word[()]
        self._look_again_at = inf
        self._in_flight: deque[str] = deque()
        self._records: dict[str, ModuleInfo] = {}
        self._marks: set[str] = set()

    def compared(self, name: str) -> ModuleInfo:
        """Adds comparing both words before the transaction and in it, and the time at which to look for a new file."""
        shared = self._word
        word, usage = shared[()], self._usage_seen
        if word != self._followed or _monotonic() > self._look_again_at:
            raise AssertionError("nobody writes here")
        txn = self._begin()
        value: Any = None
        if shared[()] == word and self._usage_word[()] == usage:
            value = txn.get(name.encode())
        checksum(value)
        info = self._decode(value)
        txn.abort()
        return info

    def in_flight(self, name: str) -> ModuleInfo:
        """Adds the place in the list."""
        self._in_flight.append(name)
        try:
            return self.compared(name)
        finally:
            self._in_flight.pop()

    def missed(self, name: str) -> ModuleInfo:
        """Adds the look-up in the cache before, and the mark of a name that was read once."""
        try:
            return self._records[name]
        except KeyError:
            pass
        info = self.in_flight(name)
        if name not in self._marks:
            self._marks.add(name)
            self._marks.discard(name)  # each pass begins without marks
        return info


CACHED_STEPS: Final = ("the call", "+ look-up in a dict", "+ revision word compared")
UNCACHED_STEPS: Final = (
    "the call, the name encoded",
    "+ transaction begun and aborted",
    "+ value looked up and copied",
    "+ checksum",
    "+ decoded",
    "+ words and time compared",
    "+ listed for a fork, and a call",
    "+ missed in the cache, marked, and a call",
)
