"""Modules that manifests declare and that are otherwise in the registry: overridden by a client's record, or away."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from dspy_registry.registry_store.codec import open_record
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layers import CLIENT


class Standing(msgspec.Struct, frozen=True):
    """Full names. `away`: a client unregistered them; the next change of the folder brings them back."""

    overrides: tuple[str, ...] = ()
    away: tuple[str, ...] = ()


def standing_of(txn: Transaction, dbs: Databases, names: Iterable[str]) -> Standing:
    """How the modules of these full names stand. Each is read: call it away from the daemon's loop."""
    overrides, away = [], []
    for name in names:
        record = txn.get(name.encode(), None, dbs.modules)
        if record is None:
            away.append(name)
        elif _is_clients(record, name):
            overrides.append(name)
    return Standing(tuple(overrides), tuple(away))


def _is_clients(record: bytes, name: str) -> bool:
    try:
        return open_record(record, name).provenance.source == CLIENT
    except CorruptRecordError:  # `check` tells it
        return False
