"""A version of a module in a draft, and the number of the next one."""

from __future__ import annotations

import msgspec

from dspy_registry.registry_store.errors import RegistryFullError
from dspy_registry.registry_store.layout import LAST_VERSION
from dspy_registry.registry_store.records import By, ModuleInfo


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A module in the draft. `encoded` are its bytes, `past` the versions that were replaced within this draft.

    `by` changed it last. None: not known. `program` is the digest of its program. Empty: it has none.
    `global_revision` is the cluster's; 0: it is of this host.
    """

    info: ModuleInfo
    encoded: bytes
    version: int
    source: str
    sequence: int
    past: tuple[Entry, ...] = ()
    by: By | None = None
    program: bytes = b""
    global_revision: int = 0


def after(name: str, version: int) -> int:
    """The number of the version after this one. Raises RegistryFullError."""
    if version >= LAST_VERSION:
        raise RegistryFullError(f"{name} is at version {version}, the last possible one.")
    return version + 1
