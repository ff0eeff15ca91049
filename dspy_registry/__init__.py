"""DSPy Module Registry: which DSPy modules exist on this host, what they need and how to route them.

Everything a user needs is imported from here. A name is loaded when it is first used. So `import dspy_registry` costs
nothing, and a worker that only reads loads no asyncio, watchfiles, dspy or click. Names that are not in `__all__` may
change in any release.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dspy_registry.readers.programs import Programs
    from dspy_registry.readers.registry import Registry
    from dspy_registry.readers.route import Candidate, Exclusion, Route
    from dspy_registry.readers.routing import CostWeights, Recommendation
    from dspy_registry.readers.snapshot import Snapshot
    from dspy_registry.readers.watched import ChangeWithRecords
    from dspy_registry.registry_store import errors
    from dspy_registry.registry_store.advice import Standing
    from dspy_registry.registry_store.changes import AliasChange, Change, LabelChange, ModuleChange
    from dspy_registry.registry_store.errors import (
        AmbiguousNameError,
        BusyError,
        ClusterAccessError,
        ClusterFullError,
        ClusterMembershipError,
        ClusterUnavailableError,
        ConflictError,
        CorruptRecordError,
        DamagedStoreError,
        DiscoveryError,
        ForkedSnapshotError,
        FormatVersionError,
        InvalidArgumentError,
        InvalidModuleError,
        InvalidProgramError,
        LabelConflictError,
        LimitReachedError,
        NoCandidateError,
        NoProgramError,
        NoReaderSlotError,
        ProgramRefusedError,
        ProtocolError,
        RegistryError,
        RegistryFullError,
        RegistryNotFoundError,
        RouteFailedError,
        StoreClosedError,
        StoreError,
        StorePermissionError,
        UnknownAliasError,
        UnknownLabelError,
        UnknownModuleError,
        UnknownVersionError,
        UpgradeRequiredError,
        VocabularyError,
        WriterLockedError,
        WriterTimeoutError,
        WriterUnavailableError,
    )
    from dspy_registry.registry_store.health_file import HealthEntry
    from dspy_registry.registry_store.labels import Label, LabelUpdate
    from dspy_registry.registry_store.policy import Policy
    from dspy_registry.registry_store.records import ModuleInfo, Provenance, Requirements, StoredModule
    from dspy_registry.registry_store.selection import Resolved
    from dspy_registry.registry_store.usage import Durations, ModuleUsage, VersionUsage
    from dspy_registry.router.attempt import Attempt, Result
    from dspy_registry.router.router import Router
    from dspy_registry.writer.client.async_client import AsyncWriterClient
    from dspy_registry.writer.client.client import WriterClient
    from dspy_registry.writer.client.reporter import UsageReporter
    from dspy_registry.writer.registry_writer import RegistryWriter

__all__ = [  # noqa: RUF022 - grouped by what they are for
    # Reading
    "Registry",
    "Snapshot",
    "Programs",
    "Recommendation",
    "CostWeights",
    # Routing
    "Route",
    "Candidate",
    "Exclusion",
    "Router",
    "Result",
    "Attempt",
    # Writing and reporting
    "RegistryWriter",
    "WriterClient",
    "AsyncWriterClient",
    "UsageReporter",
    # Records
    "ModuleInfo",
    "Requirements",
    "Provenance",
    "StoredModule",
    "Change",
    "ChangeWithRecords",
    "ModuleChange",
    "LabelChange",
    "AliasChange",
    "Label",
    "LabelUpdate",
    "Resolved",
    "ModuleUsage",
    "VersionUsage",
    "Durations",
    "Standing",
    # Health and limits
    "Policy",
    "HealthEntry",
    # Errors
    "errors",
    "RegistryError",
    "UnknownModuleError",
    "UnknownVersionError",
    "UnknownLabelError",
    "UpgradeRequiredError",
    "UnknownAliasError",
    "AmbiguousNameError",
    "InvalidArgumentError",
    "InvalidModuleError",
    "InvalidProgramError",
    "ProgramRefusedError",
    "NoProgramError",
    "VocabularyError",
    "ConflictError",
    "LabelConflictError",
    "StoreError",
    "RegistryNotFoundError",
    "RegistryFullError",
    "StorePermissionError",
    "FormatVersionError",
    "CorruptRecordError",
    "DamagedStoreError",
    "NoReaderSlotError",
    "StoreClosedError",
    "ForkedSnapshotError",
    "DiscoveryError",
    "NoCandidateError",
    "RouteFailedError",
    "WriterLockedError",
    "WriterUnavailableError",
    "WriterTimeoutError",
    "BusyError",
    "LimitReachedError",
    "ProtocolError",
    "ClusterUnavailableError",
    "ClusterFullError",
    "ClusterAccessError",
    "ClusterMembershipError",
]

_ERRORS: Final = "registry_store.errors"
_RECORDS: Final = "registry_store.records"

# The module of each name; a name of `__all__` that is not listed here is an error class.
_HOMES: Final = {
    "Registry": "readers.registry",
    "Snapshot": "readers.snapshot",
    "Programs": "readers.programs",
    "Recommendation": "readers.routing",
    "CostWeights": "readers.routing",
    "Route": "readers.route",
    "Candidate": "readers.route",
    "Exclusion": "readers.route",
    "Router": "router.router",
    "Result": "router.attempt",
    "Attempt": "router.attempt",
    "RegistryWriter": "writer.registry_writer",
    "WriterClient": "writer.client.client",
    "AsyncWriterClient": "writer.client.async_client",
    "UsageReporter": "writer.client.reporter",
    "ModuleInfo": _RECORDS,
    "Requirements": _RECORDS,
    "Provenance": _RECORDS,
    "StoredModule": _RECORDS,
    "Change": "registry_store.changes",
    "ChangeWithRecords": "readers.watched",
    "ModuleChange": "registry_store.changes",
    "LabelChange": "registry_store.changes",
    "AliasChange": "registry_store.changes",
    "Label": "registry_store.labels",
    "LabelUpdate": "registry_store.labels",
    "Resolved": "registry_store.selection",
    "ModuleUsage": "registry_store.usage",
    "VersionUsage": "registry_store.usage",
    "Durations": "registry_store.usage",
    "Standing": "registry_store.advice",
    "Policy": "registry_store.policy",
    "HealthEntry": "registry_store.health_file",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, _ERRORS)}")
    value = home if name == "errors" else getattr(home, name)
    globals()[name] = value  # Python finds it without this function from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
