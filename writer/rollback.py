"""Rolling a module back: the record of an earlier version is registered again, as a new version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import CorruptRecordError, UnknownVersionError
from dspy_registry.registry_store.history import KeptVersion, Versions, load_versions
from dspy_registry.registry_store.records import ModuleInfo
from dspy_registry.registry_store.sharing import attach, detach

if TYPE_CHECKING:
    from dspy_registry.writer.client.client import WriterClient
    from dspy_registry.writer.registry_writer import RegistryWriter


class RolledBack(msgspec.Struct, frozen=True):
    """The result of a rollback: `version` is in force now, with the record of version `restored`.

    It is visible in `revision`.
    """

    revision: int
    name: str
    restored: int
    version: int


def read_versions(folder: Path, name: str) -> Versions:
    """The kept versions of a module. Raises UnknownModuleError, AmbiguousNameError, RegistryNotFoundError."""
    environment = attach(folder)
    try:
        with environment.long_read() as txn:
            return load_versions(txn, environment.dbs, name)
    finally:
        detach(environment)


def roll_back(writer: RegistryWriter | WriterClient, versions: Versions, version: int | None = None) -> RolledBack:
    """Register the record of an earlier version again, as a client's, if the module is as `versions` has it.

    `version` None means the version before the one in force, or the last one of a module that is not registered. If
    the record in force is equal, there is no new version. Raises UnknownVersionError, CorruptRecordError,
    ConflictError when the module was changed since, and what `register_module` raises.
    """
    chosen = choose(versions, version)
    info = chosen.load().info
    revision = writer.register_module(info, expected_version=versions.in_force)
    now = versions.in_force if _is_in_force(versions, info) else versions.kept[0].version + 1
    return RolledBack(revision, versions.name, chosen.version, now)


def choose(versions: Versions, version: int | None) -> KeptVersion:
    """The version to register again. Raises UnknownVersionError naming the kept versions."""
    for kept in versions.kept:
        if kept.version == version or (version is None and kept.version != versions.in_force):
            return kept
    raise UnknownVersionError(versions.name, version, (kept.version for kept in versions.kept))


def _is_in_force(versions: Versions, info: ModuleInfo) -> bool:
    if not versions.in_force:
        return False
    try:
        return encode(versions.kept[0].load().info) == encode(info)
    except CorruptRecordError:
        return False
