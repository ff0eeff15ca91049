"""Rolling a module back: the record of an earlier version is registered again, as a new version."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.errors import CorruptRecordError, UnknownVersionError
from dspy_registry.registry_store.history import KeptVersion, Versions, load_versions
from dspy_registry.registry_store.program_rows import program_of
from dspy_registry.registry_store.records import StoredModule
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.writer.programs import Publication

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
    stored = chosen.load()
    revision = _register(writer, stored, versions)
    now = versions.in_force if _is_in_force(versions, stored) else versions.kept[0].version + 1
    return RolledBack(revision, versions.name, chosen.version, now)


def _register(writer: RegistryWriter | WriterClient, stored: StoredModule, versions: Versions) -> int:
    """A new record keeps the program in force, so a version is registered together with its program."""
    program = stored.provenance.program
    if not program and not program_of(versions.kept[0].record):
        return writer.register_module(stored.info, expected_version=versions.in_force)
    publication = Publication(versions.name, program, stored.info, is_in_force=True)
    return writer.publish_program(publication, b"", expected_version=versions.in_force).revision


def choose(versions: Versions, version: int | None) -> KeptVersion:
    """The version to register again. Raises UnknownVersionError naming the kept versions.

    Without a version it is the newest one that was in force and is not what is in force now.
    """
    later: KeptVersion | None = None
    for kept in versions.kept:
        if kept.version == version:
            return kept
        is_eligible = kept.version != versions.in_force and not _was_passed_by(kept, later)
        if version is None and is_eligible and not _is_what_is_in_force(versions, kept):
            return kept
        later = kept
    raise UnknownVersionError(versions.name, version, (kept.version for kept in versions.kept))


def _was_passed_by(kept: KeptVersion, later: KeptVersion | None) -> bool:
    """Whether the next version came in the same commit, as when a program is published beside what is in force.

    A host of a cluster commits together what came one after the other: then the global revisions tell.
    """
    if later is None:
        return False
    try:
        first, second = kept.load().provenance, later.load().provenance
    except CorruptRecordError:
        return False
    if first.global_revision and second.global_revision:
        return first.global_revision == second.global_revision
    return first.revision == second.revision


def _is_what_is_in_force(versions: Versions, kept: KeptVersion) -> bool:
    try:
        return _is_in_force(versions, kept.load())
    except CorruptRecordError:
        return False


def _is_in_force(versions: Versions, stored: StoredModule) -> bool:
    if not versions.in_force:
        return False
    try:
        current = versions.kept[0].load()
    except CorruptRecordError:
        return False
    is_same = current.provenance.program == stored.provenance.program
    return is_same and encode(current.info) == encode(stored.info)
