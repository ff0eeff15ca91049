"""The records of the registry: a module, and its provenance.

Evolution rules, within one format version: records are arrays. New fields are added at the end only, and always with
a default. An older reader skips fields that it does not know. A newer reader uses the default of a missing field.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

CLIENT: Final = "client"
"""The source of a module that a client or an embedded writer registered."""

By: TypeAlias = tuple[int, int]
"""Who changed something: a user id and a process id, by the kernel's word."""


class Requirements(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a module needs to run.

    `memory` and `compute` are levels: low < medium < high < very_high. `extra` holds further requirements under names
    that the user chooses. All who hold the record share this dict, so do not change it.
    """

    memory: str = "low"
    compute: str = "low"
    gpu: bool = False
    extra: dict[str, Any] = {}


class ModuleInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One module, as it was registered.

    `name` is dotted and unique. `category` and `pool_type` may be any word. `estimated_duration` is the typical
    execution time in milliseconds (0: instant). `native_available` says that a non-Python implementation exists.
    `metadata` may have any keys, with plain JSON-like values.

    All who read a record in one process share one object. It is frozen, but `metadata` and `requirements.extra` are
    ordinary dicts. Do not change them: copy them with copy.deepcopy first.
    """

    name: str
    category: str = "unknown"
    capabilities: tuple[str, ...] = ()
    requirements: Requirements = Requirements()
    pool_type: str = "general"
    estimated_duration: int = 1000
    native_available: bool = False
    examples: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}


class Provenance(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What the registry adds to each module.

    `version` counts from 1; `revision` is the commit that last changed the record; `updated_at` its time in
    milliseconds since the epoch; `sequence` is the place in registration order, kept for life; `source` is core,
    discovered, manifest:<file> or client. `by` is the user id and process id of the one who changed it, as the kernel
    told them; None: not known, or written in format 1; process 0: of another PID namespace. `program` is the SHA-256 of
    a program's state (empty: the version has none), `global_revision` a cluster's revision (0: no cluster's).
    """

    version: int
    revision: int
    updated_at: int
    sequence: int
    source: str = CLIENT
    by: By | None = None
    program: bytes = b""
    global_revision: int = 0


def stored_fields(kept: Provenance, format: int) -> tuple[Any, ...]:
    """What is stored of a provenance: without the last fields, where they have their defaults."""
    always = kept.version, kept.revision, kept.updated_at, kept.sequence
    if format > 1 and (kept.program or kept.global_revision):
        return (*always, kept.source, kept.by, kept.program, kept.global_revision)
    if format > 1 and kept.by is not None:
        return (*always, kept.source, kept.by)
    return always if kept.source == CLIENT else (*always, kept.source)


class StoredModule(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A module with its provenance."""

    info: ModuleInfo
    provenance: Provenance


def to_plain(info: ModuleInfo) -> dict[str, Any]:
    """A new dict that JSON can hold. The keys of `requirements.extra` stand beside memory, compute and gpu."""
    plain = msgspec.structs.asdict(info)
    plain["capabilities"] = list(info.capabilities)
    plain["examples"] = list(info.examples)
    plain["metadata"] = dict(info.metadata)
    needs = info.requirements
    plain["requirements"] = {
        **needs.extra,
        "memory": needs.memory,
        "compute": needs.compute,
        "gpu": needs.gpu,
    }
    return plain


def from_plain(plain: dict[str, Any]) -> ModuleInfo:
    """The reverse of `to_plain`. It does not validate: call `validate_module` for that.

    Raises TypeError if the name is missing or a field is unknown.
    """
    fields = dict(plain)
    needs = fields.get("requirements")
    if isinstance(needs, dict):
        known = {key: needs[key] for key in ("memory", "compute", "gpu") if key in needs}
        extra = {key: value for key, value in needs.items() if key not in known}
        fields["requirements"] = Requirements(**known, extra=extra)
    for key in ("capabilities", "examples"):
        if isinstance(fields.get(key), list):
            fields[key] = tuple(fields[key])
    return ModuleInfo(**fields)
