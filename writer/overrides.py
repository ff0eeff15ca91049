"""Ending a client's override of a module, and giving a client's module another name. Both stage on a draft."""

from __future__ import annotations

import msgspec

from dspy_registry.registry_store.changes import Alias
from dspy_registry.registry_store.errors import (
    InvalidModuleError,
    NotPossibleError,
    UnknownModuleError,
)
from dspy_registry.registry_store.labels import labelled_versions
from dspy_registry.registry_store.layers import CLIENT
from dspy_registry.registry_store.validation import name_problems, stored_name_problems
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.entry import Entry
from dspy_registry.writer.labels import carry_labels


def release(draft: Draft, name: str) -> None:
    """A client's record gives way to what other sources declare of the module.

    Raises UnknownModuleError, and InvalidArgumentError when nothing else declares it.
    """
    current = _registered(draft, name)
    if current.source != CLIENT:
        return
    layers = draft.layers_of(name)
    if not layers:
        raise NotPossibleError(
            f"a client alone declares {name}: there is nothing to go back to.",
            remedy="`dspy-registry unregister` removes it. If it was unregistered and came back by a rollback, what a "
            "manifest declares of it counts again from the next change of its folder, or the daemon's next start.",
        )
    draft.relayer(name, layers, releases=True)


def rename(draft: Draft, old: str, new: str) -> None:
    """Register a client's module under another name, with its aliases and labels. Its history stays under the old name.

    Versions that labels name come along, numbered from 1, since a label names versions of its own module.

    Raises UnknownModuleError, and InvalidModuleError when `new` is malformed or taken, or other sources declare the
    module: they would bring the old name back.
    """
    if stored_name_problems(old):
        raise UnknownModuleError(old)
    if name_problems(new):
        raise InvalidModuleError(f"{old!r} as {new!r}", name_problems(new))
    current = _registered(draft, old)
    problems = ["a module of this name is registered"] if draft.module(new) is not None else []
    declaring = ", ".join(draft.layers_of(old))
    if declaring:
        problems.append(f"{declaring} declares {old!r}: rename it there")
    if problems:
        raise InvalidModuleError(f"{old!r} as {new!r}", problems)
    renumbered = {}
    for version in sorted({*labelled_versions(draft.labels_of(old).values()), current.version}):
        info, program = draft.past_version(old, version)
        renumbered[version] = draft.put_version(msgspec.structs.replace(info, name=new), CLIENT, program).version
    carry_labels(draft, old, new, renumbered)
    for alias in tuple(draft.aliases_of(old)):
        draft.aliases.put(alias, draft.alias(alias), Alias(new, CLIENT))
    draft.unregister(old)


def _registered(draft: Draft, name: str) -> Entry:
    if stored_name_problems(name):
        raise UnknownModuleError(name)
    current = draft.module(name)
    if current is None:
        raise draft.catalog.unknown(name)
    return current
