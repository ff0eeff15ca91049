"""Usage statistics: what workers report, what is stored for each module, and what a reader gets.

A worker counts its calls and sends batches. The writer merges them into one row per module. The rows lie in a separate
database: merging makes no revision, and drops nothing from a reader's cache.
"""

from __future__ import annotations

import time
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.errors import AmbiguousNameError, InvalidArgumentError
from dspy_registry.registry_store.handles import Databases, Transaction

SIZES: Final = ("small", "normal", "large", "very_large")
SMALL_INPUT: Final = 100
"""Characters. An input up to this is small; above LARGE_INPUT it is large, above VERY_LARGE_INPUT very large."""
LARGE_INPUT: Final = 1_000
VERY_LARGE_INPUT: Final = 10_000

MINUTES_KEPT: Final = 60
HOURS_KEPT: Final = 48
LARGEST_COUNT: Final = 2**53
"""Counts stop here: a double holds every whole number up to this one exactly."""

# Bucket keys of DurationSketch between its shortest and its longest duration, with a margin.
_LOWEST_KEY, _HIGHEST_KEY = -512, 1536
MAX_ENTRIES: Final = 4096

Count = Annotated[int, Meta(ge=0, le=LARGEST_COUNT)]
Key = Annotated[int, Meta(ge=_LOWEST_KEY, le=_HIGHEST_KEY)]
Size = Annotated[str, Meta(max_length=16)]
Minute = Annotated[int, Meta(ge=0, le=2**40)]
Dollars = Annotated[float, Meta(ge=0, le=1e12)]


def size_class(input_chars: int | None) -> str:
    """The size class of an input of `input_chars` characters; None: unknown, which counts as normal.

    The routing timeout uses the same bounds of large and very large.
    """
    if input_chars is None:
        return "normal"
    if input_chars > LARGE_INPUT:
        return "very_large" if input_chars > VERY_LARGE_INPUT else "large"
    return "small" if input_chars <= SMALL_INPUT else "normal"


class Buckets(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """A DurationSketch as it is stored: how many durations were zero, and how many fell into which bucket."""

    zeros: Count = 0
    counts: Annotated[tuple[tuple[Key, Count], ...], Meta(max_length=_HIGHEST_KEY - _LOWEST_KEY)] = ()


# What workers report


class Report(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """One module's calls since the previous batch.

    `names` are the names that the module may be registered under, best first. `calls` counts all calls, `errors` the
    failed ones among them. Times are in milliseconds since the epoch, `minutes` are minutes since the epoch.
    `priced_calls` counts the calls whose cost is known. `durations` are of successful calls, by size class.
    """

    names: Annotated[tuple[str, ...], Meta(min_length=1, max_length=8)]
    calls: Count
    errors: Count
    first_used: Count
    last_used: Count
    tokens_in: Count = 0
    tokens_out: Count = 0
    cost_usd: Dollars = 0.0
    priced_calls: Count = 0
    minutes: Annotated[tuple[tuple[Minute, Count], ...], Meta(max_length=2 * MINUTES_KEPT)] = ()
    durations: Annotated[dict[Size, Buckets], Meta(max_length=len(SIZES))] = {}


class Batch(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """What one reporter sends at once. `number` rises by one each time, so a batch that arrives twice is merged once.

    `lost` counts calls that the reporter could not keep.
    """

    reporter: Annotated[bytes, Meta(min_length=16, max_length=16)]
    number: Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]
    reports: Annotated[tuple[Report, ...], Meta(max_length=MAX_ENTRIES)]
    lost: Count = 0


encode_reports: Final = msgspec.msgpack.Encoder().encode
_decode_batch: Final = msgspec.msgpack.Decoder(Batch).decode


def read_batch(payload: bytes) -> Batch:
    """The batch in these bytes from the socket. Raises InvalidArgumentError if they are no batch or out of bounds."""
    try:
        batch: Batch = _decode_batch(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(f"a batch of usage statistics is not understood: {error}.") from error
    return batch


# What a reader gets


class Durations(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How long successful calls took: how many there were, and quantiles in milliseconds (0.0: no calls).

    A quantile is off by at most 1 % of the exact one.
    """

    calls: int = 0
    p50: float = 0.0
    p90: float = 0.0
    p99: float = 0.0


class Ring(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Calls in each of the last periods, newest last. `last` is the newest period, counted since the epoch."""

    last: int = 0
    counts: tuple[int, ...] = ()

    def until(self, period: int, length: int) -> tuple[int, ...]:
        """`length` counts, of which the last is the count of `period`."""
        oldest = self.last - len(self.counts) + 1
        wanted = range(period - length + 1, period + 1)
        return tuple(self.counts[at - oldest] if oldest <= at <= self.last else 0 for at in wanted)


class ModuleUsage(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What real calls have shown of one module. A copy: later calls do not change it.

    `calls` counts all calls, `errors` the failed ones among them. `first_used` and `last_used` are milliseconds since
    the epoch (0: never used), to about a second. `overall` and `durations` are of successful calls; `durations` has
    the size classes that were seen. Tokens, cost and durations of a module include those of the modules it calls.
    `cost_usd` is the cost in US dollars of the `priced_calls`, whose cost is known.
    """

    name: str
    calls: int = 0
    errors: int = 0
    first_used: int = 0
    last_used: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float = 0.0
    priced_calls: int = 0
    overall: Durations = Durations()
    durations: dict[str, Durations] = {}
    minutes: Ring = Ring()
    hours: Ring = Ring()

    @property
    def error_rate(self) -> float | None:
        """The share of calls that failed, 0 to 1; None: there were no calls."""
        return self.errors / self.calls if self.calls else None

    @property
    def cost_usd_per_call(self) -> float | None:
        """Mean cost of the calls whose cost is known, in US dollars; None: there are no such calls."""
        return self.cost_usd / self.priced_calls if self.priced_calls else None

    def calls_by_minute(self, now: float | None = None) -> tuple[int, ...]:
        """Calls in each of the last 60 minutes, newest last. `now` is in seconds since the epoch; None: the present."""
        return self.minutes.until(_seconds(now) // 60, MINUTES_KEPT)

    def calls_by_hour(self, now: float | None = None) -> tuple[int, ...]:
        """Calls in each of the last 48 hours, newest last. `now` is in seconds since the epoch; None: the present."""
        return self.hours.until(_seconds(now) // 3600, HOURS_KEPT)


def _seconds(now: float | None) -> int:
    return int(time.time() if now is None else now)


# What is stored


class Row(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A row of `usage`: what readers get, and the sketches that it was made from. A reader decodes only the first."""

    usage: ModuleUsage
    durations: dict[str, Buckets]


class _RowHead(msgspec.Struct, array_like=True, frozen=True, gc=False):
    usage: ModuleUsage


class Ledger(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What is kept of a reporter: the number of its last merged batch, and when (milliseconds since the epoch)."""

    number: int
    merged_at: int


row_codec = Sealed(Row, "a usage row")
ledger_codec = Sealed(Ledger, "a usage reporter's row")
lost_codec = Sealed(int, "the count of calls lost")
_head_codec = Sealed(_RowHead, "a usage row")

# No name holds a control character, so these sort before every name.
LEDGER_PREFIX: Final = b"\0r"
LOST_KEY: Final = b"\0lost"
_FIRST_NAME: Final = b"\x01"


def ledger_key(reporter: bytes) -> bytes:
    """Key of what is remembered of a reporter."""
    return LEDGER_PREFIX + reporter


def registered_name(txn: Transaction, dbs: Databases, name: str) -> str | None:
    """The full name of the registered module that `name` means; None: no module, or several."""
    try:
        return lookup.resolve(txn, dbs, name)
    except AmbiguousNameError:
        return None


def load_usage(txn: Transaction, dbs: Databases, name: str) -> ModuleUsage | None:
    """The usage stored under exactly this name; None: there is none. Raises CorruptRecordError."""
    value = txn.get(name.encode(), None, dbs.usage) if lookup.is_askable(name) else None
    return None if value is None else usage_in(value)


def usage_in(value: bytes) -> ModuleUsage:
    """The usage in a row's bytes. Raises CorruptRecordError."""
    usage: ModuleUsage = _head_codec.load(value).usage
    return usage


def load_all(txn: Transaction, dbs: Databases) -> list[ModuleUsage]:
    """The usage of every module that was used, most used first. Raises CorruptRecordError."""
    cursor = txn.cursor(dbs.usage)
    if not cursor.set_range(_FIRST_NAME):
        return []
    found = [usage_in(value) for _, value in cursor]
    return sorted(found, key=lambda usage: (-usage.calls, usage.name))


def calls_lost(txn: Transaction, dbs: Databases) -> int:
    """How many calls reporters or the writer could not keep, over the registry's life. Raises CorruptRecordError."""
    value = txn.get(LOST_KEY, None, dbs.usage)
    return 0 if value is None else int(lost_codec.load(value))
