"""Whether the registry still has the aliases and the labels that manifests declare.

When a module is unregistered, the registry drops both. The manifest still declares them: once the module is
registered again, they must come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from dspy_registry.registry_store.changes import change_codec
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.layout import label_key, revision_key
from dspy_registry.registry_store.scan import value_at
from dspy_registry.writer.manifests.declarations import Declarations, DeclaredLabel

_MOST_FOLLOWED: Final = 1000
"""Revisions. Beyond that, it is cheaper to look at each alias."""


class DeclaredAlias(NamedTuple):
    """An alias of a manifest. `is_own`: a manifest declares the module, too."""

    alias: str
    name: str
    is_own: bool


def declared_aliases(effective: Mapping[str, Declarations]) -> tuple[DeclaredAlias, ...]:
    """The aliases of all files in force."""
    own = {name for declared in effective.values() for name in declared.modules}
    return tuple(
        DeclaredAlias(alias, name, name in own)
        for declared in effective.values()
        for alias, name in declared.aliases.items()
    )


def are_disturbed(
    environment: Environment,
    aliases: Iterable[DeclaredAlias],
    labels: Iterable[DeclaredLabel],
    since: int,
    until: int,
) -> bool:
    """Whether one is wrong because a module was registered or unregistered after `since` and up to `until`."""
    touching = {word: one for one in aliases for word in (one.alias, one.name)}
    labelled = {one.name: one for one in labels}
    if not (touching or labelled) or since >= until:
        return False
    with environment.reading() as txn:
        names = _come_and_gone(txn, environment.dbs, since, until)
        touched = touching.values() if names is None else [touching[name] for name in names if name in touching]
        lost = labelled.values() if names is None else [labelled[name] for name in names if name in labelled]
        are_wrong = any(_is_wrong(txn, environment.dbs, one) for one in touched)
        return are_wrong or any(_is_gone(txn, environment.dbs, one) for one in lost)


def _is_gone(txn: Transaction, dbs: Databases, declared: DeclaredLabel) -> bool:
    """Whether the label is gone, as all labels of its module are, although the module is registered."""
    is_registered = txn.get(declared.name.encode(), None, dbs.modules) is not None
    return is_registered and value_at(txn, dbs.labels, label_key(declared.name, declared.label)) is None


def _come_and_gone(txn: Transaction, dbs: Databases, since: int, until: int) -> set[str] | None:
    """The modules registered or unregistered in these revisions. None: the log does not say."""
    if until - since > _MOST_FOLLOWED:
        return None
    names: set[str] = set()
    for revision in range(since + 1, until + 1):
        key = revision_key(revision)
        logged = txn.get(key, None, dbs.changes)
        change = None if logged is None else change_codec.load(logged, key, dbs.format)
        if change is None or change.everything:
            return None
        names.update(module.name for module in change.modules if module.action != "updated")
    return names


def _is_wrong(txn: Transaction, dbs: Databases, declared: DeclaredAlias) -> bool:
    """Whether a full name shadows the alias, or the alias is gone although it could be declared.

    The alias may stay away while its module, which manifests declare, is unregistered by a client.
    """

    def is_registered(name: str) -> bool:
        return txn.get(name.encode(), None, dbs.modules) is not None

    if txn.get(declared.alias.encode(), None, dbs.aliases) is not None:
        return is_registered(declared.alias)
    return is_registered(declared.name) or not declared.is_own
