"""The policies that a reader has loaded, and what they say of each module. Kept until the revision word changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from dspy_registry.registry_store import lookup
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.policy import Declaration, Limit, Policy, effective_policy, limits_of
from dspy_registry.registry_store.policy_rows import load_policies
from dspy_registry.registry_store.revision import RETIRED

_KEPT: Final = 8192


class ModulePolicy(msgspec.Struct, frozen=True, gc=False):
    """What is decided about a module of this full name. `limits` are in the order in which to take them."""

    name: str
    policy: Policy
    limits: tuple[Limit, ...]


class PolicyCache:
    """Policies as of one revision word. When the word has changed, a new cache takes its place."""

    __slots__ = ("by_name", "declarations", "word")

    def __init__(self, word: float = RETIRED, declarations: Sequence[Declaration] = ()) -> None:
        self.word = word
        self.declarations = declarations
        self.by_name: dict[str, ModulePolicy] = {}

    def decided(self, asked: str, name: str, pool: str) -> ModulePolicy:
        """The decision for a module, kept under the string that was asked."""
        if len(self.by_name) >= _KEPT:
            self.by_name = {}
        found = self.by_name[asked] = decide(self.declarations, name, pool)
        return found


_NOTHING: Final = Policy()


def decide(declarations: Sequence[Declaration], name: str, pool: str) -> ModulePolicy:
    """What these policies say of a module."""
    if not declarations:
        return ModulePolicy(name, _NOTHING, ())
    return ModulePolicy(name, effective_policy(declarations, name, pool), limits_of(declarations, name, pool))


def load_declarations(txn: Transaction, dbs: Databases) -> tuple[Declaration, ...]:
    """Every policy. Raises CorruptRecordError."""
    return tuple(load_policies(txn, dbs))


def load_name_and_pool(txn: Transaction, dbs: Databases, asked: str) -> tuple[str, str]:
    """The full name and the pool of the module that is asked for. Raises UnknownModuleError, AmbiguousNameError."""
    info = lookup.find_info(txn, dbs, asked)
    if info is None:
        raise lookup.unknown(txn, dbs, asked)
    return info.name, info.pool_type
