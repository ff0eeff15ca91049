"""A registry that follows a cluster is changed through a daemon with --cluster alone."""

from __future__ import annotations

from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import ClusterMembershipError
from dspy_registry.registry_store.layout import META_CLUSTER
from dspy_registry.registry_store.scan import value_at


def refuse_member(environment: Environment) -> None:
    """Raises ClusterMembershipError for a registry that follows a cluster: what is written here alone would be lost."""
    with environment.reading() as txn:
        is_member = value_at(txn, environment.dbs.meta, META_CLUSTER) is not None
    if is_member:
        raise ClusterMembershipError(
            f"{environment.folder} follows a cluster, and only a daemon with --cluster may change it.",
            remedy="Use `dspy-registry serve --cluster`, or end the membership with `dspy-registry cluster leave`.",
        )
