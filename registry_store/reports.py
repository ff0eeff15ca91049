"""What workers tell of their calls: reports by module and version, sent in numbered batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, cast

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.evidence import Evidence
from dspy_registry.registry_store.layout import LAST_VERSION
from dspy_registry.registry_store.usage import LARGEST_COUNT, MAX_ENTRIES, MINUTES_KEPT, SIZES, Count

MOST_KINDS: Final = 32

Size = Annotated[str, Meta(max_length=16)]
Minute = Annotated[int, Meta(ge=0, le=2**40)]
Minutes = Annotated[tuple[tuple[Minute, Count], ...], Meta(max_length=2 * MINUTES_KEPT)]
Dollars = Annotated[float, Meta(ge=0, le=1e12)]
Version = Annotated[int, Meta(ge=0, le=LAST_VERSION)]
Kinds = Annotated[tuple[Count, ...], Meta(max_length=MOST_KINDS)]


class Report(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """The calls of one module and version since the batch before.

    `names` are what the module may be registered as, best first. `version` 0: the one in force when the calls began,
    which was within `began`, the first and the last. Times are in milliseconds since the epoch, minutes are minutes
    since the epoch. `kinds` are counts in the order of `outcome_kinds.KINDS`. `calls` are all but the cancelled ones,
    `minutes` the same by minute. `errors` are the calls that failed, `failed` the same by minute. `uncounted` are the
    calls by minute that count neither as success nor as failure. `priced_calls` of the calls told their cost.
    `evidence` is about durations, by size class.
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
    minutes: Minutes = ()
    version: Version = 0
    began: tuple[Count, Count] = (0, 0)
    kinds: Kinds = ()
    failed: Minutes = ()
    uncounted: Minutes = ()
    evidence: Annotated[dict[Size, Evidence], Meta(max_length=len(SIZES))] = {}


class Batch(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """What one reporter sends at once. `number` rises by one: a batch that arrives twice is merged once.

    `lost` counts calls that the reporter could not keep.
    """

    reporter: Annotated[bytes, Meta(min_length=16, max_length=16)]
    number: Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]
    reports: Annotated[tuple[Report, ...], Meta(max_length=MAX_ENTRIES)]
    lost: Count = 0


class EncodedBatch(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """A batch whose reports are still encoded: a large one takes long to decode, so that is done one by one."""

    reporter: Annotated[bytes, Meta(min_length=16, max_length=16)]
    number: Annotated[int, Meta(ge=1, le=LARGEST_COUNT)]
    reports: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=MAX_ENTRIES)]
    lost: Count = 0


encode_reports: Final = msgspec.msgpack.Encoder().encode
_decode_batch: Final = msgspec.msgpack.Decoder(Batch).decode
_decode_encoded_batch: Final = msgspec.msgpack.Decoder(EncodedBatch).decode
_decode_report: Final = msgspec.msgpack.Decoder(Report).decode


def read_batch(payload: bytes) -> Batch:
    """A batch as it came over the socket. Raises InvalidArgumentError for what is not one, or out of bounds."""
    return cast("Batch", _read(_decode_batch, payload))


def open_batch(payload: bytes) -> EncodedBatch:
    """As `read_batch`, but the reports are not looked at: `read_report` does it."""
    return cast("EncodedBatch", _read(_decode_encoded_batch, payload))


def read_report(encoded: msgspec.Raw) -> Report:
    """A report of an encoded batch. Raises InvalidArgumentError."""
    return cast("Report", _read(_decode_report, encoded))


def _read(decode: Callable[[Any], Any], encoded: Any) -> Any:
    try:
        return decode(encoded)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgumentError(f"a batch of usage statistics is not understood: {error}.") from error
