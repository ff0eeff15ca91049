"""What a process tells of its calls of one module version and size: enough to keep the joint statistics in order.

The order of calls matters in few places only: which calls were the last to complete, which timeouts came first in
their row, and whether the last call timed out. The rest are counts.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.duration_buckets import LONGEST, as_buckets, key_of
from dspy_registry.registry_store.recent_calls import BLOCK
from dspy_registry.registry_store.usage import Buckets, Count

COUNTED_IN_ROW: Final = 3
"""Of timeouts in a row, so many enter the window: the rest of an outage says nothing more about durations."""

Milliseconds = Annotated[float, Meta(ge=0, le=LONGEST)]


class Evidence(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Durations and limits are in milliseconds, those in buckets within 1 %.

    `recent`: the longest of the last up to 16 completed calls, and of the up to 16 before; 0.0: there are none.
    `first`: the limits of the timeouts before any call completed, three at most. `later`: the limits of the first
    three timeouts of each later row. `beyond`: the limits of all other timeouts. `last_row`: how many timeouts there
    were after the last completed call, and the largest limit of them.
    """

    completed: Buckets = Buckets()
    recent: tuple[Milliseconds, Milliseconds] = (0.0, 0.0)
    first: Annotated[tuple[Milliseconds, ...], Meta(max_length=COUNTED_IN_ROW)] = ()
    later: Buckets = Buckets()
    beyond: Buckets = Buckets()
    last_row: tuple[Count, Milliseconds] = (0, 0.0)


class Gathered:
    """Calls of one module version and size while they are gathered; `evidence` is what is sent."""

    __slots__ = ("_beyond", "_completed", "_first", "_in_row", "_largest", "_last", "_later")

    def __init__(self) -> None:
        self._completed: dict[int, int] = {}
        self._last: list[float] = []
        self._first: list[float] = []
        self._later: dict[int, int] = {}
        self._beyond: dict[int, int] = {}
        self._in_row = 0
        self._largest = 0.0

    def completed(self, milliseconds: float) -> None:
        """Count a call that completed. Its duration must be neither infinite nor NaN."""
        milliseconds = _bounded(milliseconds)
        key = key_of(milliseconds)
        self._completed[key] = self._completed.get(key, 0) + 1
        self._last.append(milliseconds)
        if len(self._last) > 4 * BLOCK:
            del self._last[: -2 * BLOCK]
        self._in_row, self._largest = 0, 0.0

    def timed_out(self, limit: float) -> None:
        """Count a call that its caller ended after `limit` milliseconds, neither infinite nor NaN."""
        limit = _bounded(limit)
        self._in_row += 1
        self._largest = max(self._largest, limit)
        if self._in_row > COUNTED_IN_ROW:
            _count(self._beyond, limit)
        elif self._completed:
            _count(self._later, limit)
        else:
            self._first.append(limit)

    def evidence(self) -> Evidence:
        """All calls gathered."""
        last, before = self._last[-BLOCK:], self._last[-2 * BLOCK : -BLOCK]
        return Evidence(
            as_buckets(self._completed),
            (max(last, default=0.0), max(before, default=0.0)),
            tuple(self._first),
            as_buckets(self._later),
            as_buckets(self._beyond),
            (self._in_row, self._largest),
        )


def _count(counts: dict[int, int], milliseconds: float) -> None:
    key = key_of(milliseconds)
    counts[key] = counts.get(key, 0) + 1


def _bounded(milliseconds: float) -> float:
    return min(max(0.0, milliseconds), LONGEST)
