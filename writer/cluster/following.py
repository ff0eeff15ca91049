"""Putting what the cluster has changed in force on this host: the stages that a mirror submits. Pure but for the draft.

Each stage moves the position in the same commit. A stage that comes twice finds the position moved and does nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import msgspec

from dspy_registry.registry_store.cluster_rows import VERSIONS, Position, position_codec, row_key, split_row_key
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryError
from dspy_registry.registry_store.layout import ALIASES, LABELS, META_CLUSTER, META_ROLLOUT, META_VOCABULARY, MODULES
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.engine import KeyValue
from dspy_registry.writer.cluster.global_labels import drop_label
from dspy_registry.writer.cluster.global_rows import load_row, rows, split_part
from dspy_registry.writer.cluster.keys import BATCHES, ROLLOUTS, Keys, head_codec
from dspy_registry.writer.cluster.records import KINDS, GlobalModule, MissingProgramError, take_over, withdraw
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.held_programs import release_held


class MissingProgramsError(RegistryError):
    """A stage needs programs that this host does not have: fetch and hold them, then stage again.

    `revisions` are the global revisions that name them, by digest.
    """

    def __init__(self, revisions: dict[bytes, int]) -> None:
        super().__init__(f"{len(revisions)} programs of the cluster are not fetched yet.")
        self.revisions = revisions


@dataclass
class Applied:
    """What a stage did: where it led, and what it set aside, by kind and key, with the reason.

    `lost` are programs that the cluster does not have whole, `missing` those that have to be fetched first.
    """

    position: Position
    lost: Collection[bytes] = frozenset()
    missing: dict[bytes, int] = field(default_factory=dict)
    aside: dict[tuple[bytes, bytes], str] = field(default_factory=dict)
    settled: set[tuple[bytes, bytes]] = field(default_factory=set)


def load_position(catalog: Catalog) -> Position | None:
    """How far this host has followed a cluster. None: it belongs to none. Raises CorruptRecordError."""
    stored = catalog.position
    if stored is None:
        return None
    position: Position = position_codec.load(stored, META_CLUSTER, catalog.format)
    return position


def staged_position(draft: Draft) -> Position | None:
    """The same, as a draft leaves it: a commit may hold several stages of a mirror."""
    stored = draft.cluster_position()
    if not stored:
        return None
    position: Position = position_codec.load(stored, META_CLUSTER, draft.catalog.format)
    return position


def advance(draft: Draft, revision: int) -> None:
    """Move the position to a global revision up to which nothing else has changed. It never moves back."""
    position = staged_position(draft)
    if position is not None and revision > position.revision:
        set_position(draft, msgspec.structs.replace(position, revision=revision))


def set_position(draft: Draft, position: Position) -> None:
    """Store how far the cluster is followed, in the commit of this draft."""
    draft.position = position_codec.dump(position, META_CLUSTER, draft.catalog.format)


def follow(
    draft: Draft,
    keys: Keys,
    start: Position,
    changes: Sequence[KeyValue],
    until: int,
    lost: Collection[bytes] = frozenset(),
) -> Applied:
    """Stage changes of a watch, in order, and the position behind them: the global revision `until`.

    Raises MissingProgramsError.
    """
    position = staged_position(draft) or start
    done = Applied(position, lost)
    for revision, group in groupby(changes, key=lambda change: change.revision):
        if revision > position.revision:
            done.position = _transaction(draft, keys, done, list(group), revision)
    if until > position.revision:
        done.position = msgspec.structs.replace(done.position, revision=until)
        set_position(draft, done.position)
    return _finished(draft, done)


def _finished(draft: Draft, done: Applied) -> Applied:
    """Programs that were held for this stage are named by versions now, or by nothing."""
    if done.missing:
        raise MissingProgramsError(done.missing)
    release_held(draft)
    return done


def _transaction(draft: Draft, keys: Keys, done: Applied, group: list[KeyValue], revision: int) -> Position:
    position = msgspec.structs.replace(done.position, revision=revision)
    for change in group:
        if change.key == keys.head and change.value is not None:
            position = msgspec.structs.replace(position, head=revision, number=_number(change.value, position))
        _settle_batch(draft, keys, done, change)
    _take_over_all(draft, keys, done, group)
    return position


def _settle_batch(draft: Draft, keys: Keys, done: Applied, change: KeyValue) -> None:
    """A batch that was set aside is copied out, or taken back: its records have come one by one."""
    name = keys.batch_of(change.key)
    if name is None or change.value is not None or draft.cluster_row(row_key(BATCHES, name)) is None:
        return
    draft.cluster[row_key(BATCHES, name)] = None
    done.settled.add((BATCHES, name))


def _number(value: bytes, position: Position) -> int:
    try:
        return int(head_codec.load(value).number)
    except CorruptRecordError:  # of another release: the compare of revisions keeps order, the number only counts
        return position.number + 1


def _take_over_all(draft: Draft, keys: Keys, done: Applied, changes: Iterable[KeyValue]) -> None:
    for kind, key, change, record in _in_order(keys, changes):
        done.settled.add((kind, key))
        if change.value is None:
            draft.cluster[row_key(kind, key)] = None
            done.aside.pop((kind, key), None)
            continue
        try:
            reason = take_over(draft, kind, key, change.value, change.since, done.lost, record)
        except MissingProgramError as error:
            done.missing[error.digest] = change.revision
            continue
        done.aside.pop((kind, key), None)
        if reason:
            done.aside[kind, key] = reason


def _in_order(keys: Keys, changes: Iterable[KeyValue]) -> list[tuple[bytes, bytes, KeyValue, GlobalModule | None]]:
    """The global records among changes: modules that went, modules in their order, then what leads to modules.

    Modules are decoded here, since they hold their order; None: it is another kind, or cannot be decoded. A version
    alone is ever deleted: no label names it any longer. What else somebody deleted stays as it was.
    """
    found = [
        (*place, change, _module(place[0], change))
        for change in changes
        if (place := keys.split_record(change.key)) is not None and (change.value is not None or place[0] == VERSIONS)
    ]
    return sorted(found, key=lambda one: _rank(one[0], one[2], one[3]))


def _module(kind: bytes, change: KeyValue) -> GlobalModule | None:
    if kind != MODULES:
        return None
    try:
        module: GlobalModule = KINDS[MODULES].codec.load(change.value or b"")
    except CorruptRecordError:
        return None
    return module


def _rank(kind: bytes, change: KeyValue, module: GlobalModule | None) -> tuple[int, int, int]:
    if kind == META_VOCABULARY:
        return 0, 0, 0
    if kind != MODULES:
        return 4 if kind == LABELS else 3, change.since, 0
    if module is None:
        return 2, change.since, 0
    return (1, change.since, 0) if module.info is None else (2, 0, module.order)


def adopt_all(
    draft: Draft,
    keys: Keys,
    position: Position,
    different: Sequence[KeyValue],
    gone: Sequence[bytes],
    lost: Collection[bytes] = frozenset(),
) -> Applied:
    """Stage all that a list of the whole cluster found to differ, `gone` the rows that the cluster no longer has.

    Raises MissingProgramsError.
    """
    known = staged_position(draft)
    if known is not None and known.revision > position.revision:  # a commit that had begun before came between
        return Applied(known, lost)
    done = Applied(position, lost)
    for place in gone:
        kind, key = split_row_key(place)
        if kind == MODULES:
            withdraw(draft, key.decode())
        elif kind == ROLLOUTS:
            draft.rollouts[META_ROLLOUT + key] = None
        elif kind == LABELS:
            drop_label(draft, *split_part(key.decode()))
        draft.cluster[place] = None
        done.settled.add((kind, key))
    _take_over_all(draft, keys, done, different)
    done.missing = dict.fromkeys(done.missing, position.revision)  # a record's own revision may be compacted
    set_position(draft, position)
    return _finished(draft, done)


def look_again(draft: Draft, done: Applied, aside: Iterable[tuple[bytes, bytes]]) -> None:
    """Put in force what was set `aside` and can be by now, and aliases that went with a module of this host.

    Raises MissingProgramsError.
    """
    lost = [(ALIASES, alias.encode()) for alias in lost_aliases(draft)]
    for kind, key in dict.fromkeys((*aside, *lost)):
        row = load_row(draft, row_key(kind, key))
        if row is None or not row.value:
            continue
        child = draft.child()
        try:
            reason = take_over(child, kind, key, row.value, row.revision, done.lost)
        except MissingProgramError as error:
            done.missing[error.digest] = 0
            continue
        if reason == row.aside:
            continue
        draft.absorb(child)
        done.settled.add((kind, key))
        if reason:
            done.aside[kind, key] = reason
    _finished(draft, done)


def lost_aliases(draft: Draft) -> Iterator[str]:
    """Aliases of the cluster that are in force according to their rows, and are not there."""
    for place, row in rows(draft.catalog, ALIASES):
        alias = split_row_key(place)[1].decode()
        if row.is_live and not row.aside and draft.alias(alias) is None:
            yield alias


def differs(draft: Draft, keys: Keys, change: KeyValue) -> bool:
    """Whether this host has another state of a global record than the cluster."""
    place = keys.split_record(change.key)
    if place is None:
        return False
    row = load_row(draft, row_key(*place))
    return row is None or row.revision != change.since
