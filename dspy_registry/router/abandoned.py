"""The calls of a process that ran past their limit and have not ended yet."""

from __future__ import annotations

import os
from weakref import WeakSet


class Abandoned:
    """The calls that were abandoned and have not ended yet. Those of a parent are not the calls of a forked child."""

    def __init__(self) -> None:
        self._calls: set[object] = set()
        _counts.add(self)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._calls)

    def add(self, call: object) -> None:
        """Count a call until it has ended."""
        self._calls.add(call)

    def ended(self, call: object) -> None:
        """The call has ended. Does nothing if it does not count."""
        self._calls.discard(call)

    def forget(self) -> None:
        """In a forked child: the calls are the parent's."""
        self._calls = set()


_counts: WeakSet[Abandoned] = WeakSet()


# Fork


def _after_fork_in_child() -> None:
    for each in list(_counts):
        each.forget()


os.register_at_fork(after_in_child=_after_fork_in_child)
