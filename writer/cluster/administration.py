"""`cluster join`, `leave` and `seed`: what is done to a registry whose daemon does not run."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import (
    ClusterMembershipError,
    ClusterUnavailableError,
    RegistryNotFoundError,
    WriterLockedError,
)
from dspy_registry.registry_store.layout import DATA_FILE, MODULES
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.attach import new_host_id
from dspy_registry.writer.cluster.batches import PLACES_OF_A_CHANGE
from dspy_registry.writer.cluster.engine import Engine, KeyValue
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.following import load_position
from dspy_registry.writer.cluster.global_labels import GlobalLabel, GlobalVersion
from dspy_registry.writer.cluster.keys import BATCHES, Head, Keys, head_codec
from dspy_registry.writer.cluster.membership import (
    OwnRecord,
    different_from,
    own_records,
    read_all,
    refuse_different,
    refuse_other_cluster,
    stage_history,
    stage_join,
    stage_leave,
)
from dspy_registry.writer.cluster.options import ClusterOptions
from dspy_registry.writer.cluster.program_staging import document_of
from dspy_registry.writer.cluster.program_store import ProgramStore
from dspy_registry.writer.cluster.records import KINDS, GlobalModule
from dspy_registry.writer.store import Store

_KEYS_AT_ONCE: Final = 90
_BYTES_AT_ONCE: Final = 512 * 1024
_NAMES_AT_ONCE: Final = 256
_STOP_IT: Final = (
    "Nothing was changed. Stop that writer (`systemctl stop dspy-registry`), repeat it, then start the writer again."
)
T = TypeVar("T")


class Membership(msgspec.Struct, frozen=True):
    """What a command did: the cluster, this host's id in it, and how many records were seeded, discarded or kept."""

    cluster: str
    host: str
    records: int


def join(options: ClusterOptions, path: str | os.PathLike[str] | None = None, *, discard: bool = False) -> Membership:
    """Let a registry follow a cluster. `discard`: drop what clients of this host registered and the cluster has not.

    Raises ClusterMembershipError naming what the cluster does not have, WriterLockedError while a daemon runs.
    """
    store = _store(registry_path(path))
    try:
        own, former = _own(store)
        cluster, records, _ = _with(options, lambda engine: _look(engine, _keys(options, former)))
        if former is not None:
            refuse_other_cluster(former, cluster)
            return Membership(cluster, former.host, 0)
        position = Position(cluster, new_host_id())
        different = different_from(own, _keys(options, position), records)
        if not discard:
            refuse_different(different)
        store.committer.commit(lambda draft: stage_join(draft, position, different))
        return Membership(cluster, position.host, len(different))
    finally:
        store.close()


def leave(path: str | os.PathLike[str] | None = None) -> Membership:
    """End a registry's membership. What it took over stays, as records of this host.

    Raises ClusterMembershipError when it follows no cluster, WriterLockedError while a daemon runs,
    RegistryNotFoundError.
    """
    folder = registry_path(path)
    if not (folder / DATA_FILE).exists():
        raise RegistryNotFoundError(f"there is no registry in {folder}.")
    store = _store(folder)
    try:
        own, former = _own(store)
        if former is None:
            raise ClusterMembershipError(f"{store.folder} follows no cluster.")
        store.committer.commit(stage_leave)
        return Membership(former.cluster, former.host, len(own))
    finally:
        store.close()


def seed(options: ClusterOptions, path: str | os.PathLike[str] | None = None) -> Membership:
    """Put into the cluster what clients of this host registered, and join. It may be repeated when it was cut short.

    Raises ClusterMembershipError when the cluster has other records under the same names, WriterLockedError while a
    daemon runs.
    """
    store = _store(registry_path(path))
    try:
        own, former = _own(store)
        _refuse_local_labels(own)
        position = former or Position("", new_host_id())
        keys = _keys(options, position)
        cluster, seeded = _with(options, lambda engine: _seed(engine, keys, position, own, store.environment))
        _share_history(store, seeded)
        joined = msgspec.structs.replace(position, cluster=cluster)
        if former is None:
            store.committer.commit(lambda draft: stage_join(draft, joined, ()))
        return Membership(cluster, position.host, len(own))
    finally:
        store.close()


def _store(folder: Path) -> Store:
    """The registry, to be written here. Raises WriterLockedError."""
    try:
        return Store(folder)
    except WriterLockedError as error:
        error.remedy = _STOP_IT
        raise


def _own(store: Store) -> tuple[list[OwnRecord], Position | None]:
    environment = store.environment
    environment.dbs.need_format_2("a cluster's records")
    with environment.reading() as txn:
        catalog = Catalog(txn, environment.dbs)
        return own_records(catalog), load_position(catalog)


def _keys(options: ClusterOptions, position: Position | None) -> Keys:
    return Keys(options.prefix, position.host if position is not None else "")


def _with(options: ClusterOptions, act: Callable[[Engine], Awaitable[T]]) -> T:
    async def run() -> T:
        engine = Etcd(options)
        try:
            return await act(engine)
        except ClusterUnavailableError as error:
            error.remedy = "Look at the cluster's nodes, then run it again."
            raise
        finally:
            await engine.close()

    return asyncio.run(run())


async def _look(engine: Engine, keys: Keys) -> tuple[str, dict[bytes, KeyValue], KeyValue | None]:
    return (await engine.cluster_id(), *(await read_all(engine, keys)))


def _refuse_local_labels(own: Sequence[OwnRecord]) -> None:
    local = [str(one) for one in own if isinstance(one.record, GlobalLabel) and not one.record.runs]
    if local:
        raise ClusterMembershipError(
            f"clients set labels of modules that only this host declares: {', '.join(local[:8])}.",
            remedy="Declare them in a manifest, or remove them: a cluster's labels name versions of the cluster.",
        )


async def _seed(
    engine: Engine, keys: Keys, position: Position, own: Sequence[OwnRecord], environment: Environment
) -> tuple[str, dict[str, int]]:
    """The cluster's id, and of each module that was put the global revision that did."""
    cluster, records, head = await _look(engine, keys)
    if position.cluster:
        refuse_other_cluster(position, cluster)
    if any(key.startswith(keys.record(BATCHES, b"")) for key in records):
        raise ClusterMembershipError(
            "the cluster has a batch that this host cannot read, and any of its modules may be in it.",
            remedy="Start the daemon that wrote it, or upgrade this host.",
        )
    missing = different_from(own, keys, records)
    taken = [one for one in missing if keys.record(one.kind, one.key) in records]
    if taken:
        raise ClusterMembershipError(
            f"the cluster has other records of {', '.join(map(str, taken[:8]))}.",
            remedy="`dspy-registry cluster join --discard` takes over what the cluster has.",
        )
    number = head_codec.load(head.value or b"").number if head is not None else 0
    revision = head.revision if head is not None else 0
    programs, seeded = ProgramStore(engine, keys), {}
    for part in _parts(missing):
        number += 1
        expected = {keys.head: revision}
        for digest in dict.fromkeys(one.program for one in part if one.program):
            expected.update(await programs.put(digest, partial(_document, environment, digest)))
        revision = await _put(engine, keys, position.host, part, number, expected)
        seeded.update({one.key.decode(): revision for one in part if one.kind == MODULES})
    return cluster, seeded


def _share_history(store: Store, seeded: Mapping[str, int]) -> None:
    """What this registry has counted of these modules is the cluster's count: labels may name those versions."""
    names = list(seeded)
    for at in range(0, len(names), _NAMES_AT_ONCE):
        part = {name: seeded[name] for name in names[at : at + _NAMES_AT_ONCE]}
        store.committer.commit(partial(stage_history, seeded=part))


async def _document(environment: Environment, digest: bytes) -> bytes:
    return document_of(environment, digest, ())


def _parts(records: Sequence[OwnRecord]) -> list[list[OwnRecord]]:
    parts: list[list[OwnRecord]] = []
    size = 0
    for one in records:
        has_info = isinstance(one.record, GlobalModule | GlobalVersion)
        bytes_of_it = 256 + (len(one.record.info or b"") if has_info else 0)
        if not parts or len(parts[-1]) >= _KEYS_AT_ONCE or size + bytes_of_it > _BYTES_AT_ONCE:
            parts.append([])
            size = 0
        parts[-1].append(one)
        size += bytes_of_it
    return parts


async def _put(
    engine: Engine, keys: Keys, host: str, part: Sequence[OwnRecord], number: int, expected: Mapping[bytes, int]
) -> int:
    puts = {}
    for place, one in enumerate(part):
        record = one.record
        if isinstance(record, GlobalModule):
            record = msgspec.structs.replace(record, order=number * PLACES_OF_A_CHANGE + place)
        puts[keys.record(one.kind, one.key)] = KINDS[one.kind].codec.dump(record)
    puts[keys.head] = head_codec.dump(Head(os.urandom(16), number, host, time.time_ns() // 1_000_000))
    outcome = await engine.transact(expected, puts)
    if not outcome.succeeded:
        raise ClusterMembershipError(
            "another host has changed the cluster meanwhile.", remedy="Run `dspy-registry cluster seed` again."
        )
    return outcome.revision
