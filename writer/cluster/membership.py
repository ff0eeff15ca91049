"""Which registry belongs to which cluster: joining, leaving, and refusing what does not fit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.cluster_rows import VERSIONS, Position, row_key
from dspy_registry.registry_store.codec import decode_record, encode
from dspy_registry.registry_store.errors import ClusterMembershipError, CorruptRecordError
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.layout import ALIASES, LABELS, META_VOCABULARY, MODULES, POLICIES
from dspy_registry.registry_store.wording import listed
from dspy_registry.writer import policies
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.batches import expanded, newest
from dspy_registry.writer.cluster.engine import Engine, KeyValue
from dspy_registry.writer.cluster.following import set_position
from dspy_registry.writer.cluster.global_labels import GlobalLabel, GlobalVersion, drop_label
from dspy_registry.writer.cluster.global_rows import named, part_key, split_part, stored_version, version_key
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.records import KINDS, GlobalAlias, GlobalModule, GlobalPolicy, GlobalWords, withdraw
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry

_SHOWN: Final = 8


@dataclass(frozen=True)
class OwnRecord:
    """What clients of this host have registered: a global record, once it is in the cluster."""

    kind: bytes
    key: bytes
    record: Any

    def __str__(self) -> str:
        return named(self.kind, self.key)

    @property
    def program(self) -> bytes:
        """The digest of the program that it names; empty: none."""
        return self.record.program if isinstance(self.record, GlobalModule | GlobalVersion) else b""

    def is_same(self, stored: bytes) -> bool:
        """Whether the cluster has this very record, at whatever place of its order."""
        try:
            found = KINDS[self.kind].codec.load(stored)
        except CorruptRecordError:
            return False
        if isinstance(self.record, GlobalModule):
            return _content(found) == _content(self.record)
        if isinstance(self.record, GlobalVersion):
            return _content(found) == _content(self.record)
        own, theirs = (msgspec.to_builtins(record) for record in (self.record, found))
        return bool(own[0] == theirs[0])


def own_records(catalog: Catalog) -> list[OwnRecord]:
    """What clients of this host have registered, modules in the order of registration, before what leads to them."""
    modules = sorted(_own_modules(catalog), key=lambda pair: pair[0])
    found = [record for _, record in modules]
    found += _own_labels(catalog, {record.key.decode(): record.record.version for record in found})
    for alias, meaning in catalog.aliases().items():
        if meaning.source == CLIENT:
            found.append(OwnRecord(ALIASES, alias.encode(), GlobalAlias(meaning.name)))
    for (source, pattern), policy in catalog.policies.items():
        if source == CLIENT:
            found.append(OwnRecord(POLICIES, pattern.encode(), GlobalPolicy(policy)))
    words = catalog.implications().get(CLIENT)
    if words:
        found.append(OwnRecord(META_VOCABULARY, b"clients", GlobalWords(words)))
    return found


def _own_modules(catalog: Catalog) -> Iterator[tuple[int, OwnRecord]]:
    for key, value in catalog.records():
        stored = decode_record(value, key.decode())
        kept = stored.provenance
        if kept.source == CLIENT:
            module = GlobalModule(kept.version, 0, encode(stored.info), kept.by, 0, kept.program)
            yield kept.sequence, OwnRecord(MODULES, key, module)


def _own_labels(catalog: Catalog, in_force: Mapping[str, int]) -> list[OwnRecord]:
    """Labels that clients set, behind the versions that they name; `in_force` by module that a client registered.

    A label of a module that no client registered is among them, as nothing that a cluster could have.
    """
    versions: dict[bytes, OwnRecord] = {}
    labels = []
    for name, label, found in catalog.labels_from(CLIENT):
        labels.append(OwnRecord(LABELS, part_key(name, label), GlobalLabel(found.runs if name in in_force else ())))
        for version in found.versions:
            stored = stored_version(catalog, name, version)
            if stored is not None and version != in_force.get(name, version):
                kept, key = stored.provenance, version_key(name, version)
                record = GlobalVersion(version, encode(stored.info), kept.by, kept.global_revision, kept.program)
                versions[key] = OwnRecord(VERSIONS, key, record)
    return [*versions.values(), *labels]


def _content(record: GlobalModule | GlobalVersion) -> tuple[int, bytes | None, bytes]:
    return record.version, record.info, record.program


async def read_all(engine: Engine, keys: Keys) -> tuple[dict[bytes, KeyValue], KeyValue | None]:
    """Every global record by its key, and the head, at one revision."""
    items: list[KeyValue] = []
    after, revision, more = b"", 0, True
    while more:
        page = await engine.range_at(keys.watched, after, revision)
        revision, more = page.revision, page.more
        items += await expanded(engine, keys, page.items, revision)
        after = page.items[-1].key if page.items else after
    found = {item.key: item for item in newest(items)}
    return {key: item for key, item in found.items() if key.startswith(keys.records)}, found.get(keys.head)


def different_from(own: Sequence[OwnRecord], keys: Keys, found: dict[bytes, KeyValue]) -> list[OwnRecord]:
    """What clients of this host have registered and the cluster does not have so."""
    return [one for one in own if not _has(found.get(keys.record(one.kind, one.key)), one)]


def _has(found: KeyValue | None, own: OwnRecord) -> bool:
    return found is not None and found.value is not None and own.is_same(found.value)


def refuse_different(different: Sequence[OwnRecord]) -> None:
    """Raises ClusterMembershipError that names what this host alone has."""
    if different:
        raise ClusterMembershipError(
            f"clients of this host have registered what the cluster does not have: "
            f"{listed([str(own) for own in different], _SHOWN)}.",
            remedy="`dspy-registry cluster seed` puts it there, `dspy-registry cluster join --discard` drops it here.",
        )


def refuse_other_cluster(position: Position, cluster: str) -> None:
    """Raises ClusterMembershipError when this registry follows another cluster."""
    if position.cluster != cluster:
        raise ClusterMembershipError(
            f"this registry follows cluster {position.cluster}, and this is cluster {cluster}.",
            remedy="Name the right endpoints, or run `dspy-registry cluster leave` first.",
        )


def stage_join(draft: Draft, position: Position, discarded: Sequence[OwnRecord]) -> None:
    """Begin to follow a cluster, without what only clients of this host registered."""
    for one in discarded:
        key = one.key.decode()
        if one.kind == MODULES:
            withdraw(draft, key)
        elif one.kind == LABELS:
            drop_label(draft, *split_part(key))
        elif one.kind == POLICIES:
            policies.set_policy(draft, key, None)
        elif one.kind == META_VOCABULARY:
            draft.set_implications(CLIENT, {})
    for one in discarded:
        if one.kind == ALIASES and draft.alias(one.key.decode()) is not None:
            draft.remove_alias(one.key.decode())
    for place in draft.rollout_rows():  # another host may lead, and knows nothing of it: its label stays at its step
        draft.rollouts[place] = None
    set_position(draft, position)


def stage_history(draft: Draft, seeded: Mapping[str, int]) -> None:
    """Stage that the history of these modules is a cluster's, as of the global revisions that seeded them."""
    for name, revision in seeded.items():
        for stored in draft.catalog.past_versions(name):
            kept, encoded = stored.provenance, encode(stored.info)
            entry = Entry(stored.info, encoded, kept.version, CLIENT, 0, (), kept.by, kept.program, revision)
            draft.versions.setdefault(name, {})[kept.version] = entry


def stage_leave(draft: Draft) -> None:
    """Follow the cluster no longer. What was taken over stays, as records of this host."""
    for place, _ in draft.catalog.cluster_rows(row_key(b"", b"")):
        draft.cluster[place] = None
    draft.position = b""
