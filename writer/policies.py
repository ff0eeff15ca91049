"""Setting and removing policies."""

from __future__ import annotations

from dspy_registry.registry_store.errors import NotPossibleError
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.policy import MOST_POLICIES, Policy, check_pattern, check_policy
from dspy_registry.writer.draft import Draft


def set_policy(draft: Draft, pattern: str, policy: Policy | None, source: str = CLIENT) -> None:
    """Set what a source decides for a pattern; None: it decides nothing. Raises InvalidArgumentError.

    Raises UpgradeRequiredError in a registry of format 1.
    """
    if policy is None:
        check_pattern(pattern)
    else:
        check_policy(pattern, policy)
        draft.catalog.dbs.need_format_2("policies")
    current = draft.all_policies()
    if current.get((source, pattern)) == policy:
        return
    if policy is not None and (source, pattern) not in current and len(current) >= MOST_POLICIES:
        raise NotPossibleError(
            f"there are {MOST_POLICIES} policies, and no registry may have more.", remedy="Use wider patterns."
        )
    draft.policies[source, pattern] = policy
