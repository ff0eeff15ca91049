"""The rows of the database `policies`: source, zero byte, pattern -> policy. Sources: `client` and `manifest:FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import POLICIES
from dspy_registry.registry_store.policy import CLIENT, MANIFEST, Declaration, Policy
from dspy_registry.registry_store.scan import items_from

policy_codec: Final = Sealed(Policy, "a policy", POLICIES)


def load_policies(txn: Transaction, dbs: Databases) -> list[Declaration]:
    """Every policy, by source and pattern. Of one pattern in several manifests, the first counts.

    Raises CorruptRecordError.
    """
    return declarations(load_rows(txn, dbs))


def declarations(rows: Mapping[tuple[str, str], Policy]) -> list[Declaration]:
    """Policies by (source, pattern), as declarations."""
    return [
        Declaration(pattern, CLIENT if source == CLIENT else MANIFEST, policy)
        for (source, pattern), policy in sorted(rows.items(), key=lambda row: row[0])
    ]


def load_rows(txn: Transaction, dbs: Databases) -> dict[tuple[str, str], Policy]:
    """Every policy, by (source, pattern). Raises CorruptRecordError."""
    return {
        split_key(key): policy_codec.load(value, key, dbs.format) for key, value in items_from(txn, dbs.policies, b"")
    }


def split_key(key: bytes) -> tuple[str, str]:
    """(source, pattern) of a key."""
    source, _, pattern = key.partition(b"\0")
    return source.decode(), pattern.decode()
