"""The contract that writer and readers share: records, bytes, revision word, errors. It imports neither side."""

from __future__ import annotations

from registry_store.changes import Change, ModuleChange
from registry_store.errors import (
    AmbiguousNameError,
    BusyError,
    ConflictError,
    CorruptRecordError,
    DiscoveryError,
    ForkedSnapshotError,
    FormatVersionError,
    InvalidArgumentError,
    InvalidModuleError,
    ProtocolError,
    RegistryError,
    RegistryFullError,
    RegistryNotFoundError,
    StoreClosedError,
    StoreError,
    StorePermissionError,
    UnknownAliasError,
    UnknownModuleError,
    UnknownVersionError,
    VocabularyError,
    WriterLockedError,
    WriterTimeoutError,
    WriterUnavailableError,
)
from registry_store.records import ModuleInfo, Provenance, Requirements, StoredModule
from registry_store.usage import Durations, ModuleUsage

__all__ = [  # noqa: RUF022 - grouped by what they are
    # Records
    "ModuleInfo",
    "Requirements",
    "Provenance",
    "StoredModule",
    "Change",
    "ModuleChange",
    "ModuleUsage",
    "Durations",
    # Errors
    "RegistryError",
    "UnknownModuleError",
    "UnknownVersionError",
    "UnknownAliasError",
    "AmbiguousNameError",
    "InvalidArgumentError",
    "InvalidModuleError",
    "VocabularyError",
    "ConflictError",
    "StoreError",
    "RegistryNotFoundError",
    "RegistryFullError",
    "StorePermissionError",
    "FormatVersionError",
    "CorruptRecordError",
    "StoreClosedError",
    "ForkedSnapshotError",
    "DiscoveryError",
    "WriterLockedError",
    "WriterUnavailableError",
    "WriterTimeoutError",
    "BusyError",
    "ProtocolError",
]
