"""What a commit changed: the entries of the change log, and the announcement beside the revision word."""

from __future__ import annotations

from typing import Any, Final, Literal, TypeAlias

import msgspec

from dspy_registry.registry_store.codec import Sealed

Action = Literal["registered", "updated", "unregistered"]


Requester: TypeAlias = tuple[int, int]
"""User id and process id of who asked for a change, by the kernel's word. The process is 0 in a namespace not seen."""


def shown_requester(by: Requester | None) -> str:
    """Who asked, for people."""
    return f"user {by[0]}, process {by[1] or 'unknown'}" if by else "not known"


class ModuleChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one module.

    `version` is its version from then on; of one unregistered, its last. `source` is the source of that version. `by`
    asked for the change; None: not known.
    """

    name: str
    action: Action
    version: int
    source: str = ""
    by: Requester | None = None


class AliasChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one alias.

    `old` and `new` are the modules that it meant and means; None: it was not declared, or is not any longer. `source`
    declared what it means now, else what it meant. `by` asked for the change; None: not known.
    """

    alias: str
    old: str | None
    new: str | None
    source: str = ""
    by: Requester | None = None


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One commit.

    `committed_at` is in milliseconds since the epoch. `modules` says what became of which module. `keys` are all
    strings whose look-up may now answer otherwise (names, short names, aliases), `terms` all terms whose
    postings changed. `everything` means that the commit was too large to list: the three are empty and
    nothing known before it may be relied on. `aliases` says what became of which alias. `by` asked for all of the
    commit; None: several did, or it is not known. A change that a reader finds announced, and one of an older release,
    has neither.
    """

    revision: int
    committed_at: int
    modules: tuple[ModuleChange, ...] = ()
    keys: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    everything: bool = False
    by: Requester | None = None
    aliases: tuple[AliasChange, ...] = ()


def without_requesters(change: Change) -> tuple[Any, ...]:
    """The change as release 0.1.0 stores it, to be encoded: what readers need, and nothing about who asked for it."""
    modules = tuple((module.name, module.action, module.version) for module in change.modules)
    return change.revision, change.committed_at, modules, change.keys, change.terms, change.everything


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The registry's head, stored in `meta` with every commit: the one place that says what landed."""

    revision: int
    committed_at: int
    next_sequence: int


LARGEST_LISTED_CHANGE: Final = 4096
"""A commit that touches more modules than this is recorded as `everything`."""

change_codec = Sealed(Change, "an entry of the change log")
state_codec = Sealed(State, "the registry's state")


class Alias(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an alias means, and which source declared it."""

    name: str
    source: str


Implications = dict[str, tuple[str, ...]]

alias_codec = Sealed(Alias, "an alias")
implications_codec = Sealed(dict[str, Implications], "the vocabulary")  # by source
