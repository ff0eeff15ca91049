"""The calls that this process saw itself, by module, version and size. It acts on them before they are merged.

A reporter that is not told a version counts a call under 0, which means the version in force; only a reader knows that
version. When somebody first asks, calls under 0 are assigned to the version then in force. When somebody first asks
while another version is in force, they are dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from dspy_registry.registry_store.recent_calls import Recent
from dspy_registry.registry_store.usage import SIZES

IN_FORCE: Final = 0
MOST_KEPT: Final = 4096


class Own(NamedTuple):
    """The arguments of `Standing.with_own`, in milliseconds; 0.0: none."""

    longest: float = 0.0
    backoff: float = 0.0


NOTHING: Final = Own()


class OwnCalls:
    """Bounded: the entry that was added first is dropped first. Not safe for threads: its owner must lock."""

    def __init__(self) -> None:
        self._recent: dict[tuple[str, int, str], Recent] = {}
        self.recent_of = self._recent.get
        """The calls of a full name, version and size, for who counts what is `completed_as_usual`; None: none yet."""
        self._in_force: dict[str, int] = {}
        self._names: Counter[str] = Counter()  # how many entries of `_recent` each has
        self._unversioned = 0  # how many entries of `_recent` are of calls under 0
        self.changes = 0
        """Rises before whatever may give `seen` another answer. Most calls do not."""

    def completed(self, name: str, version: int, size: str, milliseconds: float) -> None:
        """Count a call that completed."""
        recent = self._recent.get((name, version, size))
        if recent is not None and recent.completed_as_usual(milliseconds):
            return
        self.changes += 1
        (self._of(name, version, size) if recent is None else recent).completed(milliseconds)

    def timed_out(self, name: str, version: int, size: str, limit: float) -> None:
        """Count a call that its caller ended after `limit` milliseconds.

        The backoff has no ceiling here. The module's ceiling cuts the limit that is made from it.
        """
        self.changes += 1
        self._of(name, version, size).timed_out(limit, math.inf)

    def seen_by_names(self, names: Iterable[str], version: int, size: str, *, in_force: bool) -> Own:
        """`seen` of a version under any of these names."""
        found = NOTHING
        for name in names:
            if name in self._names:  # calls were counted under few of all names that are asked for
                own = self.seen(name, version, size, in_force=in_force)
                found = own if found is NOTHING else Own(*map(max, found, own))
        return found

    def seen(self, name: str, version: int, size: str, *, in_force: bool) -> Own:
        """The calls seen of this version. `in_force`: it is the version in force, so calls under 0 belong to it."""
        recent = self._recent.get((name, version, size))
        of_none = in_force and (self._unversioned or name in self._in_force)
        if recent is not None and not of_none:
            return Own(recent.longest, recent.backoff)
        found = [] if recent is None else [recent]
        if of_none and self._is_still(name, version):
            recent = self._recent.get((name, IN_FORCE, size))
            found += [] if recent is None else [recent]
        if not found:
            return NOTHING
        if len(found) == 1:
            return Own(found[0].longest, found[0].backoff)
        return Own(max(recent.longest for recent in found), max(recent.backoff for recent in found))

    def _of(self, name: str, version: int, size: str) -> Recent:
        key = (name, version, size)
        recent = self._recent.get(key)
        if recent is None:
            if len(self._recent) >= MOST_KEPT:
                self._forget(next(iter(self._recent)))
            recent = self._recent[key] = Recent()
            self._names[name] += 1
            self._unversioned += version == IN_FORCE
        return recent

    def _forget(self, key: tuple[str, int, str]) -> None:
        self.changes += 1
        if self._recent.pop(key, None) is not None:
            self._names[key[0]] -= 1
            self._unversioned -= key[1] == IN_FORCE
            if not self._names[key[0]]:
                del self._names[key[0]]

    def _is_still(self, name: str, version: int) -> bool:
        """Whether calls without a version are of this one; drops them when they were of another."""
        adopted = self._in_force.get(name)
        if adopted == version:
            return True
        if adopted is None:
            if any((name, IN_FORCE, size) in self._recent for size in SIZES):
                self._adopt(name, version)
            return True
        self.changes += 1
        del self._in_force[name]
        for size in SIZES:
            self._forget((name, IN_FORCE, size))
        return False

    def _adopt(self, name: str, version: int) -> None:
        self.changes += 1
        if len(self._in_force) >= MOST_KEPT:
            self._in_force.clear()  # the next question assigns them again
        self._in_force[name] = version
