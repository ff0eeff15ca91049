"""Which source gave each field of a module: for people who wonder, not for the request path."""

from __future__ import annotations

from typing import Final

from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.layers import CLIENT, MERGED_FIELDS, Layer, explain, layer_codec
from dspy_registry.registry_store.records import StoredModule, to_plain

UNSET: Final = "unset"
"""The source of what nobody declared."""


def sources(snapshot: Snapshot, stored: StoredModule) -> dict[str, str]:
    """The source of each field, by field; of requirements and metadata by key, as in `requirements.memory`.

    A client registers whole records, so that all of what it registered is its own.
    """
    is_clients = stored.provenance.source == CLIENT
    given = {} if is_clients else explain(layers(snapshot, stored.info.name).values())
    found = {}
    for field, value in to_plain(stored.info).items():
        keys = [f"{field}.{key}" for key in value] if field in MERGED_FIELDS else [field]
        found.update({key: CLIENT if is_clients else given.get(key, UNSET) for key in keys})
    del found["name"]
    return found


def layers(snapshot: Snapshot, name: str) -> dict[str, Layer]:
    """What sources other than clients declare of the module of this full name, by source. Raises CorruptRecordError."""
    txn = snapshot._live()
    prefix = name.encode() + b"\0"
    cursor = txn.cursor(snapshot._dbs.layers)
    declared = {}
    found = cursor.set_range(prefix)
    while found and cursor.key().startswith(prefix):
        layer: Layer = layer_codec.load(cursor.value())
        declared[layer.source] = layer
        found = cursor.next()
    return declared
