"""What it means that the cluster refused a transaction: somebody was first, or leads now, or the keys are gone."""

from __future__ import annotations

from dspy_registry.registry_store.errors import ClusterMembershipError, RegistryError
from dspy_registry.writer.cluster.engine import Outcome
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.staged import Staged


class LostLeadError(RegistryError):
    """This host is not the leader any more, so what it would have changed as such was not changed."""


def conflict(outcome: Outcome, keys: Keys, staged: Staged) -> Outcome:
    """The revision that a refused transaction has to be staged on. Raises LostLeadError, ClusterMembershipError."""
    for key, revision in staged.held.items():
        kept = outcome.found.get(key)
        if kept is None or kept.revision != revision:
            raise LostLeadError("another host leads the cluster now. Nothing was changed.")
    head = outcome.found.get(keys.head)
    if head is None:
        raise ClusterMembershipError(
            "the cluster no longer has what this host has followed: its keys were removed.",
            remedy="Restore etcd from a backup, or run `dspy-registry cluster leave` and `cluster seed`.",
        )
    return Outcome(False, head.revision, outcome.found)
