"""Opening the file of leases, and putting an empty one in its place. Leases are never taken in both."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dspy_registry.registry_store.errors import StoreError
from dspy_registry.registry_store.lease_cells import revoke_all
from dspy_registry.registry_store.lease_file import (
    ALIVE,
    LEASES_FILE,
    PROCESS,
    LeaseFile,
    LeaseFileReplacedError,
    damaged,
    ensure_lease_file,
    new_lease_file,
)
from dspy_registry.registry_store.paths import file_identity

_OPENINGS: Final = 100
_WORTH_COMPACTING: Final = 1024 * 1024


def open_lease_file(folder: Path) -> LeaseFile:
    """The file in use, created if it is missing. Raises StoreError, StorePermissionError."""
    for _ in range(_OPENINGS):
        ensure_lease_file(folder)
        try:
            file = LeaseFile(folder)
        except LeaseFileReplacedError:
            continue
        if not file.is_retired:
            return file
        file.close()
        compact_lease_file(folder)  # its retirer may have been killed before the new one was in place
    raise damaged(folder / LEASES_FILE, "it is replaced again and again")


def compact_lease_file(folder: Path, group: int | None = None) -> bool:
    """Put an empty file in the place of the present one, if nobody holds a lease in it. False: somebody does.

    Every cell is locked meanwhile, and those that are only kept are revoked. A process that locks one later sees that
    the file is retired, and opens the new.
    """
    file = LeaseFile(folder)
    try:
        temporary = new_lease_file(folder, group)  # before the lock, so that it lasts only microseconds
        try:
            if not file.lock(0, ALIVE) or file_identity(file.path) != file.identity or not _is_unused(file):
                return False
            file.retire()  # first: leases must never be taken in both files
            temporary.replace(file.path)
        finally:
            temporary.unlink(missing_ok=True)
        return True
    finally:
        file.close()


def compact_large_lease_file(folder: Path, group: int | None = None) -> bool:
    """`compact_lease_file` if regions take much room: they are never freed one by one. Returns whether it was done."""
    file = LeaseFile(folder)
    try:
        is_large = file.end > _WORTH_COMPACTING
    finally:
        file.close()
    return is_large and compact_lease_file(folder, group)


def _is_unused(file: LeaseFile) -> bool:
    """Whether no call is under way, and none can begin any more. The caller holds all locks."""
    if file.is_retired:  # by somebody who had seen it, and was killed before the new one was in place
        return True
    try:
        regions = [region for region in file.regions() if region.key != PROCESS]
    except StoreError:  # it is damaged: what is not known may be in use
        return False
    return revoke_all(file, regions)
