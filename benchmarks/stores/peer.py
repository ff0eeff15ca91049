"""What an alternative is to the benchmark, and how a store is opened in any process."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from dspy_registry import ModuleInfo

decode: Callable[[bytes], ModuleInfo] = msgspec.msgpack.Decoder(ModuleInfo).decode


@dataclass(frozen=True)
class Opening:
    """How a process comes by a store: picklable, so that any process can.

    `open` returns an object on which `statement` reads the module whose name stands for `{}`.
    """

    label: str
    open: Callable[[], Any]
    statement: str = "store.get({})"


class Peer(ABC):
    """An alternative. `start` fills it once, `opening` lets a process read it, `stop` frees what it holds.

    Every read returns the same frozen struct as ours, decoded from the same bytes, and sees the newest write of any
    process, as ours does: peers that keep no copies in the process ask their store each time.
    """

    key: ClassVar[str]
    label: ClassVar[str]
    install: ClassVar[str]
    module: ClassVar[str]
    settings: ClassVar[str]

    def missing(self) -> str | None:
        """Why it cannot be measured here, None when it can."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # not there, or not for this Python
            return f"{error}: {self.install}"
        return None

    @abstractmethod
    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        """Fill it with names and encoded records, in an empty folder that it alone uses."""

    @abstractmethod
    def opening(self) -> Opening:
        """How to read it."""

    def stop(self) -> None:  # noqa: B027
        """Free what `start` took. Does nothing when it was not started; a file needs nothing."""

    def version(self) -> str:
        """Of the library, and of the server where there is one."""
        from importlib.metadata import version

        return version(self.module)
