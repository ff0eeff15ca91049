"""What a commit changed: the entries of the change log, and the announcement beside the revision word."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from dspy_registry.registry_store.codec import Sealed

Action = Literal["registered", "updated", "unregistered"]


class ModuleChange(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a commit did to one module. `version` is its version after the commit; if unregistered, its last version."""

    name: str
    action: Action
    version: int


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One commit.

    `committed_at` is in milliseconds since the epoch. `modules` has one entry for each module that changed. `keys` are
    all strings whose look-up may now give another answer (names, short names, aliases). `terms` are all terms whose
    postings changed. `everything` means that the commit was too large to list: then the three are empty, and a reader
    drops all that it has cached.
    """

    revision: int
    committed_at: int
    modules: tuple[ModuleChange, ...] = ()
    keys: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    everything: bool = False


class State(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The registry's head, stored in `meta` with every commit. It alone says which commit landed.

    `committed_at` is in milliseconds since the epoch.
    """

    revision: int
    committed_at: int
    next_sequence: int


LARGEST_LISTED_CHANGE: Final = 4096
"""A commit that touches more modules than this is recorded as `everything`."""

change_codec = Sealed(Change, "an entry of the change log")
state_codec = Sealed(State, "the registry's state")


class Alias(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The full name that an alias means, and the source that declared it."""

    name: str
    source: str


Implications = dict[str, tuple[str, ...]]

alias_codec = Sealed(Alias, "an alias")
implications_codec = Sealed(dict[str, Implications], "the vocabulary")  # by source
