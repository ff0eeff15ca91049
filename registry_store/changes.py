"""What a commit changed: the entries of the change log, and the announcement beside the revision word."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.codec import Sealed, SealedAlone
from dspy_registry.registry_store.layout import ALIASES, CHANGES, META
from dspy_registry.registry_store.records import By

Action = Literal["registered", "updated", "unregistered"]


def shown_requester(by: By | None) -> str:
    """Who asked, for people."""
    return f"user {by[0]}, process {by[1] or 'unknown'}" if by else "not known"


class ModuleChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one module. `version` is its version from then on; of one unregistered, its last.

    `by` is the user id and the process id of the requester; None: not known. `source` is the source of that version.
    """

    name: str
    action: Action
    version: int
    by: By | None = None
    source: str = ""


class AliasChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one alias.

    `old` and `new` are the modules that it meant and means; None: it was not declared, or is not any longer. `source`
    declared what it means now, else what it meant. `by` asked for the change; None: not known.
    """

    alias: str
    old: str | None
    new: str | None
    source: str = ""
    by: By | None = None


class LabelChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one label of a module.

    `old` and `new` are (version, buckets) of each version that it named and names; (): it was not set, or is not any
    longer. `source` set what it names now, else what it named. `by` asked for the change; None: not known.
    """

    name: str
    label: str
    old: tuple[tuple[int, int], ...]
    new: tuple[tuple[int, int], ...]
    source: str = ""
    by: By | None = None


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One commit.

    `committed_at` is in milliseconds since the epoch. `modules` says what became of which module. `keys` are all
    strings whose look-up may now answer otherwise (names, short names, aliases), `terms` all terms whose
    postings changed. `everything` means that the commit was too large to list: the three are empty and
    nothing known before it may be relied on.

    `by` are all who asked for a part of it and are known, `labels` says what became of which label,
    `policies` the patterns of changed policies, `overrides` the modules that became overrides or ended as such.
    `aliases` says what became of which alias.
    """

    revision: int
    committed_at: int
    modules: tuple[ModuleChange, ...] = ()
    keys: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    everything: bool = False
    by: tuple[By, ...] = ()
    labels: tuple[LabelChange, ...] = ()
    policies: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    aliases: tuple[AliasChange, ...] = ()


def _in_format_1(change: Change) -> tuple[Any, ...]:
    modules = [(module.name, module.action, module.version) for module in change.modules]
    return change.revision, change.committed_at, modules, change.keys, change.terms, change.everything


_LARGEST_REVISION: Final = 2**51  # the word is twice as large, and exact below 2**53


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The registry's head, stored in `meta` with every commit. It alone says which commit landed.

    `committed_at` is in milliseconds since the epoch.
    """

    revision: Annotated[int, Meta(ge=0, le=_LARGEST_REVISION)]
    committed_at: int
    next_sequence: Annotated[int, Meta(ge=0, le=2**32)]


LARGEST_LISTED_CHANGE: Final = 4096
"""A commit that touches more modules than this is recorded as `everything`."""

change_codec = Sealed(Change, "an entry of the change log", CHANGES, _in_format_1)
announcement_codec = SealedAlone(Change, "an announcement")
state_codec = Sealed(State, "the registry's state", META)


class Alias(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The full name that an alias means, and the source that declared it."""

    name: str
    source: str


Implications = dict[str, tuple[str, ...]]

alias_codec = Sealed(Alias, "an alias", ALIASES)
implications_codec = Sealed(dict[str, Implications], "the vocabulary", META)  # by source
