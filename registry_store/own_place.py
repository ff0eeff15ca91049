"""Where the reporters of a process tell what its calls showed, and its readers ask: one place for each registry.

Reporters only queue their calls, since `record` must cost next to nothing. So who asks first lets the reporters tell
what is queued.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol
from weakref import ReferenceType, WeakValueDictionary

from dspy_registry.registry_store.host_health import HostHealth
from dspy_registry.registry_store.own_calls import NOTHING, Own, OwnCalls


class Teller(Protocol):
    """What has calls that this place was not told of yet."""

    def tell(self) -> None:
        """Tell them."""


class OwnPlace:
    """What this process saw itself of one registry's modules. Threads may share it."""

    __slots__ = ("__weakref__", "_calls", "_lock", "health", "tellers")

    def __init__(self, folder: Path) -> None:
        self.health = HostHealth(folder)
        """Which of its modules are not healthy on this host."""
        self._calls = OwnCalls()
        self.tellers: tuple[ReferenceType[Teller], ...] = ()
        """Who may have calls to tell: the reporters of this process, or those that it had."""
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.RLock()  # re-entered by a signal's handler that asks; each step is harmless twice
        self.health.begin()

    def add_teller(self, teller: Teller) -> None:
        """Let it tell before each answer. It may go at any time."""
        with self._lock:
            self.tellers = (*(known for known in self.tellers if known() is not None), ReferenceType(teller))

    def completed(self, names: Iterable[str], version: int, size: str, milliseconds: float) -> None:
        """Count a call that completed, under every name that its module may be asked for by."""
        with self._lock:
            calls = self._calls
            recent_of = calls.recent_of
            for name in names:
                recent = recent_of((name, version, size))
                if recent is None or not recent.completed_as_usual(milliseconds):
                    calls.completed(name, version, size, milliseconds)

    def timed_out(self, names: Iterable[str], version: int, size: str, limit: float) -> None:
        """Count a call that its caller ended after `limit` milliseconds, as `completed` does."""
        with self._lock:
            for name in names:
                self._calls.timed_out(name, version, size, limit)

    def changes(self) -> int:
        """A number that rises with whatever may give `seen` another answer, calls that are queued included.

        Ask for it before `seen`: as long as it stays, so does that answer.
        """
        for reference in self.tellers:
            teller = reference()
            if teller is not None:
                teller.tell()
        return self._calls.changes

    def seen(self, names: Iterable[str], version: int, size: str, *, in_force: bool) -> Own:
        """What was seen of a version under any of these names; `in_force`: calls without a version are of it."""
        if not self.tellers:
            return NOTHING
        self.changes()  # tells what is queued
        with self._lock:
            return self._calls.seen_by_names(names, version, size, in_force=in_force)


_places: Final[WeakValueDictionary[str, OwnPlace]] = WeakValueDictionary()
_places_lock = threading.RLock()


def own_place(folder: Path) -> OwnPlace:
    """The place of the registry in this folder. It is kept while anybody has it."""
    key = os.path.realpath(folder)
    with _places_lock:
        place = _places.get(key)
        if place is None:
            place = _places[key] = OwnPlace(folder)
        return place


def _begin_in_child() -> None:
    """Locks may have been held by threads that the child does not have."""
    global _places_lock
    _places_lock = threading.RLock()
    for place in list(_places.values()):
        place._begin()


os.register_at_fork(after_in_child=_begin_in_child)
