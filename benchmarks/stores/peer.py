"""The interface of a peer, a store that people would use instead, and how any process opens a store."""

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
    """How a process opens a store. It can be pickled and sent to any process.

    `open` returns an object on which `statement` reads the module whose name stands for `{}`.
    """

    label: str
    open: Callable[[], Any]
    statement: str = "store.get({})"


class Peer(ABC):
    """A peer. `start` fills the store once, `opening` lets a process read it, `stop` frees its resources.

    As in the registry, every read returns a frozen struct decoded from the same bytes, and sees the newest write of
    any process. So a peer that keeps no copies in the process asks its store each time.
    """

    key: ClassVar[str]
    label: ClassVar[str]
    install: ClassVar[str]
    module: ClassVar[str]
    settings: ClassVar[str]

    def missing(self) -> str | None:
        """Why it cannot be measured here. None: it can."""
        try:
            importlib.import_module(self.module)
        except Exception as error:  # not installed, or not for this Python
            return f"{error}: {self.install}"
        return None

    @abstractmethod
    def start(self, folder: Path, records: Iterable[tuple[str, bytes]]) -> None:
        """Fill the store with names and encoded records. Only this store uses the empty folder."""

    @abstractmethod
    def opening(self) -> Opening:
        """How a process opens and reads the store."""

    def stop(self) -> None:  # noqa: B027
        """Free what `start` took. Does nothing if it was not started. A store in a file has nothing to free."""

    def version(self) -> str:
        """The version of the library, and of the server if there is one."""
        from importlib.metadata import version

        return version(self.module)
