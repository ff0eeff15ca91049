"""Names that an earlier release took and this one would not: sound, readable, and to be renamed."""

from __future__ import annotations

import os

import msgspec

from dspy_registry.registry_store.check.inspection import text
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.registry_store.validation import name_problems


class OldNames(msgspec.Struct, frozen=True):
    """Full names of modules, and aliases."""

    modules: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


def old_names(path: str | os.PathLike[str]) -> OldNames:
    """The names to mend of a registry that `check` finds sound. Raises RegistryNotFoundError, StoreError."""
    environment = attach(registry_path(path))
    try:
        with environment.long_read() as txn:
            found = [
                tuple(name for key, _ in txn.cursor(database) if name_problems(name := text(key)))
                for database in (environment.dbs.modules, environment.dbs.aliases)
            ]
    finally:
        detach(environment)
    return OldNames(*found)
