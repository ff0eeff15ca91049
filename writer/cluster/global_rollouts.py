"""Guarded rollouts as records of the cluster: every host has their rows, the leader moves them, any host changes them.

A rollout and its label change in one transaction. So no host ever shows a rollout at a step that its label is not at.
"""

from __future__ import annotations

from typing import Final

import msgspec

from dspy_registry.registry_store.cluster_rows import GlobalRow, row_key
from dspy_registry.registry_store.codec import SealedAlone
from dspy_registry.registry_store.errors import ClusterMembershipError, CorruptRecordError
from dspy_registry.registry_store.layout import LABELS, META_ROLLOUT, MODULES
from dspy_registry.registry_store.rollout import Rollout
from dspy_registry.registry_store.rollout_rows import load_rollout, rollout_codec, rollout_key
from dspy_registry.writer.cluster.global_rows import load_row, named, split_part
from dspy_registry.writer.cluster.keys import ROLLOUTS
from dspy_registry.writer.draft import Draft


class GlobalRollout(msgspec.Struct, frozen=True, array_like=True):
    """A guarded rollout of a label. None: it is forgotten."""

    rollout: Rollout | None = None


global_rollout_codec: Final = SealedAlone(GlobalRollout, "a rollout of the cluster")


def apply_rollout(draft: Draft, key: str, told: GlobalRollout, known: GlobalRow | None, revision: int) -> None:
    """Take a rollout over, or forget it. Raises CorruptRecordError."""
    place = META_ROLLOUT + key.encode()
    if told.rollout is None:
        draft.rollouts[place] = None
        return
    if rollout_key(told.rollout.name, told.rollout.label) != place:
        raise CorruptRecordError(f"it is the rollout of {told.rollout.name}@{told.rollout.label}.")
    row = rollout_codec.dump(told.rollout, place, draft.catalog.format)
    load_rollout(row, place, draft.catalog.format)
    draft.rollouts[place] = row


def rollout_row(told: GlobalRollout, revision: int) -> GlobalRow:
    """What a host keeps of a rollout."""
    return GlobalRow(revision, is_live=told.rollout is not None)


def rollout_changes(draft: Draft) -> dict[tuple[bytes, bytes], bytes]:
    """Read off a draft what is to be written of rollouts, by kind and key."""
    puts = {}
    for place, row in draft.rollouts.items():
        rollout = None if row is None else rollout_codec.load(row, place, draft.catalog.format)
        puts[ROLLOUTS, place[len(META_ROLLOUT) :]] = global_rollout_codec.dump(GlobalRollout(rollout))
    return puts


def refuse_rollouts(draft: Draft) -> None:
    """Raises ClusterMembershipError for rollouts changed here that this host does not know as they are.

    It may have set aside the rollout, its label or its module: what is decided without them would be wrong.
    """
    for place in draft.rollouts:
        key = place[len(META_ROLLOUT) :]
        name, _ = split_part(key.decode())
        for kind, of_kind in ((ROLLOUTS, key), (LABELS, key), (MODULES, name.encode())):
            row = load_row(draft, row_key(kind, of_kind))
            if row is not None and row.aside:
                raise ClusterMembershipError(
                    f"the cluster has a record {named(kind, of_kind)} that this host could not take over: {row.aside}",
                    remedy="Change it on a host of the release that wrote it, or upgrade this one.",
                )
