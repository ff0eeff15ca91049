"""What a commit changed: the entries of the change log, and the announcement beside the revision word."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from dspy_registry.registry_store.codec import Sealed

Action = Literal["registered", "updated", "unregistered"]


class ModuleChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of one module. `version` is its version from then on; of one unregistered, its last."""

    name: str
    action: Action
    version: int


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One commit.

    `committed_at` is in milliseconds since the epoch. `modules` says what became of which module. `keys` are all
    strings whose look-up may now answer otherwise (names, short names, aliases), `terms` all terms whose
    postings changed. `everything` means that the commit was too large to list: the three are empty and
    nothing known before it may be relied on.
    """

    revision: int
    committed_at: int
    modules: tuple[ModuleChange, ...] = ()
    keys: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    everything: bool = False


_LARGEST_REVISION: Final = 2**51  # the word is twice as large, and exact below 2**53


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The registry's head, stored in `meta` with every commit: the one place that says what landed."""

    revision: Annotated[int, Meta(ge=0, le=_LARGEST_REVISION)]
    committed_at: int
    next_sequence: Annotated[int, Meta(ge=0, le=2**32)]


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
