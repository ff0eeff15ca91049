"""Rollouts as they are stored: rows of `meta`, beside the labels that they move."""

from __future__ import annotations

from typing import Final

from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import META, META_ROLLOUT, label_key
from dspy_registry.registry_store.rollout import Rollout
from dspy_registry.registry_store.scan import items_with_prefix

rollout_codec: Final = Sealed(Rollout, "a rollout", META)


def rollout_key(name: str, label: str) -> bytes:
    """Key in `meta` of the rollout of a module's label."""
    return META_ROLLOUT + label_key(name, label)


def load_rollouts(txn: Transaction, dbs: Databases) -> list[Rollout]:
    """Every rollout, also those that have ended, by name and label. Raises CorruptRecordError."""
    return [rollout_codec.load(value, key, dbs.format) for key, value in items_with_prefix(txn, dbs.meta, META_ROLLOUT)]
