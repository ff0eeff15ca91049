"""Whether a host of a cluster has in force what it has taken over of labels, by the rows that it keeps of them."""

from __future__ import annotations

from collections.abc import Iterator

from dspy_registry.registry_store.check.inspection import CLUSTER, Head, Violation, text
from dspy_registry.registry_store.cluster_rows import global_row_codec, position_codec, row_key
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.labels import label_codec
from dspy_registry.registry_store.layout import LABELS, META_CLUSTER
from dspy_registry.registry_store.records import CLIENT
from dspy_registry.registry_store.scan import items_with_prefix, value_at


def global_labels(head: Head) -> Iterator[Violation]:
    """Labels that clients set: each has its row, and each row its label. Damage is told elsewhere."""
    if not _follows(head):
        return
    prefix = row_key(LABELS, b"")
    known: set[bytes] = set()
    for place, value in items_with_prefix(head.txn, head.dbs.meta, prefix):
        try:
            row = global_row_codec.load(value, place, head.dbs.format)
        except CorruptRecordError:
            return
        key = place[len(prefix) :]
        if row.aside or row.is_live:
            known.add(key)
        if row.is_live and not row.aside and value_at(head.txn, head.dbs.labels, key) is None:
            yield Violation(CLUSTER, _where(key), "is a label of the cluster, and is not there")
    for key, value in head.rows(head.dbs.labels):
        try:
            source = label_codec.load(value, key, head.dbs.format).source
        except CorruptRecordError:
            continue
        if source == CLIENT and key not in known:
            yield Violation(CLUSTER, _where(key), "is a client's, and no label of the cluster")


def _follows(head: Head) -> bool:
    """Whether the registry has seen a cluster as a whole: before that its own labels are not the cluster's yet."""
    stored = value_at(head.txn, head.dbs.meta, META_CLUSTER)
    try:
        return stored is not None and position_codec.load(stored, META_CLUSTER, head.dbs.format).revision > 0
    except CorruptRecordError:
        return False


def _where(key: bytes) -> str:
    name, _, label = text(key).partition("\0")
    return f"labels/{name}/{label}"
