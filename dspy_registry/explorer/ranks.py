"""The order of modules by use. Reading every module's usage takes up to a second with 100,000 modules in use, so a
thread does it beside the pages, and a page sorts by what the thread found last. A page's figures are read again."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.errors import RegistryError

_PAUSE: Final = 1.0
_SHARE: Final = 10
"""The thread pauses at least this many times as long as it worked: it takes a tenth of one processor at most."""
_KEPT: Final = 8

_log = logging.getLogger("dspy_registry")


class Ranks:
    """Names by number of calls, most used first. `start` reads once before it returns; `stop` ends the thread."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._by_use: tuple[str, ...] = ()
        self._used: frozenset[str] = frozenset()
        self._number = 0
        self._lists: dict[object, tuple[str, ...]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="explorer ranks", daemon=True)

    def start(self) -> None:
        """Read once, then go on in a thread."""
        self._read()
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def ordered(self, revision: int, asked: object, find: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        """The names that `find` gives, most used first; those without calls in the order given.

        `asked` stands for the question: the answer is kept for this revision and this order of use.
        """
        key = revision, self._number, asked
        try:
            return self._lists[key]
        except KeyError:
            found = find()
        wanted = set(found)
        ordered = (
            *(name for name in self._by_use if name in wanted),
            *(name for name in found if name not in self._used),
        )
        if len(self._lists) >= _KEPT:
            self._lists.clear()
        self._lists[key] = ordered
        return ordered

    def unregistered(self, wanted: Callable[[str], bool]) -> list[str]:
        """Names with calls that no module has, most used first, of the first hundred that are in use."""
        return [name for name in self._by_use[:100] if not wanted(name)]

    def _run(self) -> None:
        pause = _PAUSE
        while not self._stopping.wait(pause):
            began = time.monotonic()
            try:
                self._read()
            except RegistryError as error:
                _log.debug("the order of use cannot be read: %s", error)
            pause = max(_PAUSE, _SHARE * (time.monotonic() - began))

    def _read(self) -> None:
        by_use = tuple(usage.name for usage in self._registry.usages())
        if by_use != self._by_use:
            self._by_use, self._used = by_use, frozenset(by_use)
            self._number += 1
