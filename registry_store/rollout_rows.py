"""Rollouts as they are stored: rows of `meta`, beside the labels that they move."""

from __future__ import annotations

from typing import Final, NamedTuple

from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import META, META_ROLLOUT, label_key
from dspy_registry.registry_store.rollout import Rollout
from dspy_registry.registry_store.scan import items_with_prefix

rollout_codec: Final = Sealed(Rollout, "a rollout", META)


def rollout_key(name: str, label: str) -> bytes:
    """Key in `meta` of the rollout of a module's label."""
    return META_ROLLOUT + label_key(name, label)


class Rollouts(NamedTuple):
    """The rollouts that are stored, also those that have ended, by name and label. `damaged`: why others are not read.

    A damaged one is set aside: its key names the label, and every other rollout goes on.
    """

    sound: list[Rollout]
    damaged: dict[str, str]


def load_rollout(row: bytes, key: bytes, format: int) -> Rollout:
    """A stored rollout. Raises CorruptRecordError."""
    found: Rollout = rollout_codec.load(row, key, format)
    if not 0 <= found.step < len(found.plan.steps):
        raise CorruptRecordError(f"a rollout: it is at step {found.step} of {len(found.plan.steps)}.")
    return found


def load_rollouts(txn: Transaction, dbs: Databases) -> Rollouts:
    """Every rollout."""
    found = Rollouts([], {})
    for key, row in items_with_prefix(txn, dbs.meta, META_ROLLOUT):
        try:
            found.sound.append(load_rollout(row, key, dbs.format))
        except CorruptRecordError as error:
            found.damaged[_place(key)] = error.message
    return found


def _place(key: bytes) -> str:
    """acme.Qa@live"""
    return "@".join(key.decode("utf-8", "backslashreplace").split("\0")[1:])
