"""A change that is too large for one transaction: its records are put aside as pieces, and one transaction shows them.

    b/HOST/ID/0000 …   pieces, each below etcd's limit          not watched: nobody sees them
    d/b/HOST/ID        the marker, put together with `head`     from then on the records are in force

Then the host copies the records under their own keys, those alone that nothing has changed since, and removes marker
and pieces. A copy names the revision of its batch: meanwhile another batch may have shown the same record, and not be
copied yet. Then the copy is the older one, though its key was put later.

A host that dies before the marker leaves pieces that mean nothing; after it, pieces that are read instead of the
copies. The next daemon of that host finds both, and removes or copies them.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from dspy_registry.registry_store.cluster_rows import VERSIONS
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.layout import MODULES
from dspy_registry.writer.cluster.engine import Engine, KeyValue
from dspy_registry.writer.cluster.keys import BATCHES, Keys
from dspy_registry.writer.cluster.records import KINDS

PLACES_OF_A_CHANGE: Final = 2**20
"""Places in the order of registration that each change of the cluster has. A batch may hold a million modules."""
_COPY: Final = b"\xc1"  # no value begins so: msgpack never uses it
_REVISION: Final = struct.Struct(">Q")
_COPY_BYTES: Final = len(_COPY) + _REVISION.size
_PIECE_BYTES: Final = 512 * 1024
_PIECE_RECORDS: Final = 2000
_COPIED_AT_ONCE: Final = 60


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The value of a marker: how many pieces there are, and the number of the change."""

    pieces: int
    number: int


batch_codec = SealedAlone(Batch, "the marker of a batch")
_piece_codec = SealedAlone(list[tuple[bytes, bytes, bytes]], "a piece of a batch")  # kind, key, value


def placed(value: bytes, number: int, revision: int) -> bytes:
    """A module's record as its batch has it, with its place in the cluster's order and the revision that showed it."""
    module = KINDS[MODULES].codec.load(value)
    order = module.order if module.order >= PLACES_OF_A_CHANGE else number * PLACES_OF_A_CHANGE + module.order
    return KINDS[MODULES].codec.dump(msgspec.structs.replace(module, order=order, revision=revision))


def placed_puts(keys: Keys, number: int, records: Mapping[tuple[bytes, bytes], bytes]) -> dict[bytes, bytes]:
    """What the change of a number puts, by key: these records, each module with its place in the cluster's order."""
    return {
        keys.record(kind, key): placed(value, number, 0) if kind == MODULES else value
        for (kind, key), value in records.items()
    }


def shown_in(kind: bytes, value: bytes, number: int, revision: int) -> bytes:
    """A record as its batch has it: with the revision that showed it, where it does not say one itself."""
    if kind == MODULES:
        return placed(value, number, revision)
    record = KINDS[kind].codec.load(value) if kind == VERSIONS else None
    if record is None or record.revision:
        return value
    return KINDS[kind].codec.dump(msgspec.structs.replace(record, revision=revision))


def in_pieces(puts: Mapping[tuple[bytes, bytes], bytes]) -> list[bytes]:
    """The pieces that hold these records."""
    pieces: list[list[tuple[bytes, bytes, bytes]]] = []
    size = 0
    for (kind, key), value in puts.items():
        if not pieces or size + len(value) > _PIECE_BYTES or len(pieces[-1]) >= _PIECE_RECORDS:
            pieces.append([])
            size = 0
        pieces[-1].append((kind, key, value))
        size += len(key) + len(value)
    return [_piece_codec.dump(piece) for piece in pieces]


async def upload(engine: Engine, prefix: bytes, pieces: Sequence[bytes]) -> dict[bytes, int]:
    """Put the pieces. Returns what the transaction that shows them has to expect: that the last one is there."""
    last, revision = b"", 0
    for number, piece in enumerate(pieces):
        last = prefix + b"%06d" % number
        revision = (await engine.transact({}, {last: piece})).revision
    return {last: revision}


async def expanded(engine: Engine, keys: Keys, changes: Iterable[KeyValue], revision: int = 0) -> list[KeyValue]:
    """The changes, and behind each marker the records of its batch. The pieces are read as of `revision`.

    `revision` 0: as of the marker's. A batch that cannot be read is one record, of the kind `BATCHES`, which is set
    aside as any record of another release is. Raises CompactedError when the pieces are gone.
    """
    found: list[KeyValue] = []
    for change in map(uncopied, changes):
        found.append(change)
        name = keys.batch_of(change.key)
        if name is not None and change.value is not None:
            try:
                found += await _records(engine, keys, name, change, revision or change.revision)
            except CorruptRecordError:
                found.append(KeyValue(keys.record(BATCHES, name), change.value, change.revision))
    return found


async def _records(engine: Engine, keys: Keys, name: bytes, marker: KeyValue, revision: int) -> list[KeyValue]:
    batch: Batch = batch_codec.load(marker.value or b"")
    found: list[KeyValue] = []
    prefix, after, count = keys.pieces + name + b"/", b"", 0
    while count < batch.pieces:
        page = await engine.range_at(prefix, after, revision, limit=4)
        if not page.items:
            raise CorruptRecordError(f"a batch of the cluster has {count} of {batch.pieces} pieces.")
        for item in page.items:
            found += _records_of(keys, item, marker.revision, batch.number)
            after, count = item.key, count + 1
    return found


def _records_of(keys: Keys, piece: KeyValue, revision: int, number: int) -> Iterator[KeyValue]:
    for kind, key, value in _piece_codec.load(piece.value or b""):
        try:
            whole = shown_in(kind, value, number, revision)
        except CorruptRecordError:  # of another release: it is set aside alone
            whole = value
        yield KeyValue(keys.record(kind, key), whole, revision)


def newest(changes: Iterable[KeyValue]) -> list[KeyValue]:
    """Of each key, the newest: a batch counts as long as its records are not copied or changed."""
    found: dict[bytes, KeyValue] = {}
    for change in changes:
        if change.key not in found or found[change.key].since < change.since:
            found[change.key] = change
    return list(found.values())


async def copy_out(engine: Engine, keys: Keys, marker: KeyValue) -> None:
    """Copy the records of a batch under their own keys, then remove it. May be repeated."""
    name = keys.batch_of(marker.key)
    assert name is not None
    for part in _parts(await _records(engine, keys, name, marker, 0)):
        await _copy(engine, part)
    await engine.transact({}, {}, removed=(marker.key, keys.pieces + name + b"/"))


def _parts(records: Iterable[KeyValue]) -> Iterator[list[KeyValue]]:
    """As many records as one transaction takes."""
    part: list[KeyValue] = []
    size = 0
    for record in records:
        size += len(record.value or b"")
        if part and (len(part) >= _COPIED_AT_ONCE or size > _PIECE_BYTES):
            yield part
            part, size = [], len(record.value or b"")
        part.append(record)
    if part:
        yield part


async def _copy(engine: Engine, records: Sequence[KeyValue]) -> None:
    """Copy records, but for those whose keys have newer ones. What an older batch was copied to is older, however late.

    All that are left are compared and copied together: a copy of each would hold this host's changes up for seconds.
    """
    expected: dict[bytes, int] = {}
    below = {record.key: record.revision + 1 for record in records}
    while records:
        keys = [record.key for record in records]
        outcome = await engine.transact(expected, _copies(records), keys, below=below)
        if outcome.succeeded:
            return
        records, below = [record for record in records if _is_newest(record, outcome.found)], {}
        expected = {
            record.key: outcome.found[record.key].revision if record.key in outcome.found else 0 for record in records
        }


def _is_newest(record: KeyValue, found: Mapping[bytes, KeyValue]) -> bool:
    current = found.get(record.key)
    return current is None or uncopied(current).since < record.revision


def _copies(records: Sequence[KeyValue]) -> dict[bytes, bytes]:
    return {record.key: _COPY + _REVISION.pack(record.revision) + (record.value or b"") for record in records}


def uncopied(change: KeyValue) -> KeyValue:
    """A change with the value that was copied, and the revision of its batch. Other changes are as they are."""
    value = change.value
    if value is None or not value.startswith(_COPY) or len(value) < _COPY_BYTES:
        return change
    (revision,) = _REVISION.unpack_from(value, len(_COPY))
    return KeyValue(change.key, value[_COPY_BYTES:], change.revision, change.lease, revision)


async def tidy(engine: Engine, keys: Keys) -> None:
    """Copy out the batches that this host has shown, and remove the pieces of those that it has not.

    While one of them cannot be read, its pieces stay, and with them the others.
    """
    try:
        for item in (await engine.range_at(keys.batches + keys.host + b"/")).items:
            await copy_out(engine, keys, item)
    except CorruptRecordError:
        return
    page = await engine.range_at(keys.pieces + keys.host + b"/", limit=1)
    if page.items:
        await engine.transact({}, {}, removed=(keys.pieces + keys.host + b"/",))
