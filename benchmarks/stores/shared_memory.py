"""UltraDict: a dict in each process; changes reach the others through shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.stores.peer import Opening, Peer, decode
from dspy_registry import ModuleInfo

_BUFFER_BYTES = 64 << 20


class Encoded:
    """Reads that decode the record, as with every other store."""

    def __init__(self, name: str) -> None:
        self._dict = _attach(name)

    def get(self, name: str) -> ModuleInfo:
        return decode(self._dict[name])

    def close(self) -> None:
        self._dict.close()


class Structs:
    """Reads of structs. Each process has unpickled them once."""

    def __init__(self, name: str) -> None:
        self._dict = _attach(name)

    def get(self, name: str) -> ModuleInfo:
        info: ModuleInfo = self._dict[name]
        return info

    def close(self) -> None:
        self._dict.close()


def _attach(name: str) -> Any:
    from UltraDict import UltraDict

    return UltraDict(name=name, create=False, buffer_size=_BUFFER_BYTES, auto_unlink=False)


class UltraDictPeer(Peer):
    """`UltraDict` with a buffer that is large enough for all records."""

    key = "ultradict"
    label = "UltraDict"
    install = "pip install UltraDict (needs a C compiler)"
    module = "UltraDict"
    settings = "one buffer for all, without a shared lock, encoded records"
    reads: Callable[[str], Any] = Encoded

    def __init__(self) -> None:
        self._dict: Any = None

    def value(self, record: bytes) -> object:
        """The stored form of an encoded record."""
        return record

    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        from UltraDict import UltraDict

        self._dict = UltraDict(buffer_size=_BUFFER_BYTES, full_dump_size=_BUFFER_BYTES, auto_unlink=True)
        self._dict.update({name: self.value(record) for name, record in records})

    def opening(self) -> Opening:
        return Opening(self.label, partial(type(self).reads, self._dict.name))

    def stop(self) -> None:
        if self._dict is not None:
            self._dict.close()
            self._dict.unlink()
            self._dict = None


class UltraDictStructs(UltraDictPeer):
    """As `UltraDictPeer`, but with decoded structs, which every process pickles and unpickles in full."""

    key = "ultradict_structs"
    label = "UltraDict (structs)"
    settings = "one buffer for all, without a shared lock, pickled structs, so that a read decodes nothing"
    reads = Structs

    def value(self, record: bytes) -> object:
        return decode(record)
