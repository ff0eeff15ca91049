"""What a process reports of its calls of one module version and size, so that joint statistics can be kept.

The order of calls matters in three places only: which calls completed last, which timeouts were the first of their row,
and whether the last call timed out. For all others, counts are enough.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.duration_buckets import LONGEST, as_buckets, key_of, keys_of
from dspy_registry.registry_store.recent_calls import BLOCK
from dspy_registry.registry_store.usage import Buckets, Count

COUNTED_IN_ROW: Final = 3
"""How many timeouts in a row enter the window. Further ones of an outage say nothing more about durations."""
_AT_ONCE: Final = 4096

Milliseconds = Annotated[float, Meta(ge=0, le=LONGEST)]


class Evidence(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Durations and limits are in milliseconds, those in buckets within 1 %.

    `recent`: the longest of the last up to 16 completed calls, and of the up to 16 before; 0.0: no such call.
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
    """Calls of one module version and size while they are gathered; `evidence` is what is sent.

    Durations are put into buckets many at a time: a reporter's thread competes with the calls that it counts.
    """

    __slots__ = ("_beyond", "_completed", "_durations", "_first", "_in_row", "_largest", "_later")

    def __init__(self) -> None:
        self._completed: Counter[int] = Counter()
        self._durations: list[float] = []
        """Those not put into buckets yet. The last two blocks stay here, because their longest calls are reported."""
        self._first: list[float] = []
        self._later: Counter[int] = Counter()
        self._beyond: Counter[int] = Counter()
        self._in_row = 0
        self._largest = 0.0

    def completed(self, milliseconds: float) -> None:
        """Count a call that completed. Its duration must be neither infinite nor NaN."""
        self._durations.append(milliseconds)
        if len(self._durations) >= _AT_ONCE:
            self._completed.update(keys_of(self._durations[: -2 * BLOCK]))
            del self._durations[: -2 * BLOCK]
        if self._in_row:
            self._in_row, self._largest = 0, 0.0

    def timed_out(self, limit: float) -> None:
        """Count a call that its caller ended after `limit` milliseconds, neither infinite nor NaN."""
        limit = _bounded(limit)
        self._in_row += 1
        self._largest = max(self._largest, limit)
        if self._in_row > COUNTED_IN_ROW:
            self._beyond[key_of(limit)] += 1
        elif self._durations:
            self._later[key_of(limit)] += 1
        else:
            self._first.append(limit)

    def evidence(self) -> Evidence:
        """The report of all calls gathered."""
        last, before = self._durations[-BLOCK:], self._durations[-2 * BLOCK : -BLOCK]
        return Evidence(
            as_buckets(self._completed + Counter(keys_of(self._durations))),
            (_bounded(max(last, default=0.0)), _bounded(max(before, default=0.0))),
            tuple(self._first),
            as_buckets(self._later),
            as_buckets(self._beyond),
            (self._in_row, self._largest),
        )


def _bounded(milliseconds: float) -> float:
    return min(max(0.0, milliseconds), LONGEST)
