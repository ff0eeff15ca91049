"""What a manifest may say: the structs, and the JSON Schema generated from them.

Only a module's name is required. The other fields have no default here: a lower layer gives what a manifest leaves
out. The schema is beside this file (manifest.schema.json), for editors.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from dspy_registry.registry_store.layout import (
    MAX_CAPABILITIES,
    MAX_DURATION_MS,
    MAX_IMPLIED_WORDS,
    MAX_IMPLYING_WORDS,
    MAX_NAME_BYTES,
    MAX_TERM_BYTES,
)
from dspy_registry.registry_store.policy import LARGEST_CONCURRENCY, LARGEST_WINDOW, LONGEST_SECONDS

SCHEMA_FILE: Final = "manifest.schema.json"
_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_BYTES)]
Word = Annotated[str, Meta(min_length=1, max_length=MAX_TERM_BYTES)]
Capability = Annotated[str, Meta(pattern=f"^[a-z][a-z0-9_]{{0,{MAX_TERM_BYTES - 1}}}$")]
Seconds = Annotated[float, Meta(gt=0, le=LONGEST_SECONDS)]
Calls = Annotated[int, Meta(ge=1, le=LARGEST_WINDOW)]
Level = Literal["low", "medium", "high", "very_high"]


class RequirementsManifest(msgspec.Struct, kw_only=True):
    """What a module needs to run. Further keys are kept; a key that is left out is given by a lower layer."""

    memory: Annotated[Level, Meta(description="Memory: low < medium < high < very_high.")] | UnsetType = UNSET
    compute: Annotated[Level, Meta(description="Computing power: low < medium < high < very_high.")] | UnsetType = UNSET
    gpu: Annotated[bool, Meta(description="Whether it needs a GPU.")] | UnsetType = UNSET


class Fields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a manifest can say about a module."""

    category: Annotated[Word, Meta(description="Such as prediction, reasoning, retrieval.")] | UnsetType = UNSET
    capabilities: (
        Annotated[
            tuple[Capability, ...],
            Meta(max_length=MAX_CAPABILITIES, description="What it can do, such as reasoning or tool_use."),
        ]
        | UnsetType
    ) = UNSET
    requirements: RequirementsManifest | UnsetType = UNSET
    pool_type: Annotated[Word, Meta(description="The pool that runs it, such as general, optimizer, neural.")] | (
        UnsetType
    ) = UNSET
    estimated_duration: (
        Annotated[int, Meta(ge=0, le=MAX_DURATION_MS, description="Typical execution time in milliseconds.")]
        | UnsetType
    ) = UNSET
    native_available: Annotated[bool, Meta(description="Whether a non-Python implementation exists.")] | UnsetType = (
        UNSET
    )
    examples: Annotated[tuple[str, ...], Meta(description="Usage examples.")] | UnsetType = UNSET
    metadata: Annotated[dict[str, Any], Meta(description="Anything else, merged key by key.")] | UnsetType = UNSET


class ModuleManifest(Fields, kw_only=True, forbid_unknown_fields=True):
    """One module. Fields that are left out come from a lower layer (core, discovered), else from the defaults."""

    name: Annotated[Name, Meta(description="Full dotted name, such as acme.Summarise.")]


class DefaultManifest(Fields, kw_only=True, forbid_unknown_fields=True):
    """Defaults for discovered modules: they replace what discovery guessed, and nothing that is declared."""

    match: Annotated[Name, Meta(description="Full names, where * and ? stand for anything: dspy.Bootstrap*")]


class LabelManifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A label: a name for one version of a module, or for several with weights."""

    module: Annotated[Name, Meta(description="Full name of the module.")]
    label: Annotated[
        str, Meta(pattern=f"^[A-Za-z][A-Za-z0-9_.-]{{0,{MAX_TERM_BYTES - 1}}}$", description="Such as champion, live.")
    ]
    versions: Annotated[
        Annotated[int, Meta(ge=1)] | dict[Annotated[str, Meta(pattern="^[1-9][0-9]*$")], Annotated[float, Meta(gt=0)]],
        Meta(description="A version, or the weight of each version; only the proportions count."),
    ]


class PolicyManifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is decided about the modules of a name, a pattern or a pool. Times are seconds; docs/health.md says more."""

    pattern: Annotated[Name, Meta(description="A full name, a pattern such as acme.*, or pool:NAME.")]
    max_concurrency: (
        Annotated[int, Meta(ge=1, le=LARGEST_CONCURRENCY, description="Calls at once on a host.")] | UnsetType
    ) = UNSET
    max_timeout: Annotated[Seconds, Meta(description="The longest timeout that is recommended.")] | UnsetType = UNSET
    failure_share: (
        Annotated[float, Meta(gt=0, le=1, description="Of the last calls, for the circuit to open.")] | UnsetType
    ) = UNSET
    window_calls: Annotated[Calls, Meta(description="How many last calls are looked at.")] | UnsetType = UNSET
    window_seconds: Annotated[Seconds, Meta(description="How old these calls may be.")] | UnsetType = UNSET
    minimum_failures: Annotated[Calls, Meta(description="Fewer failures open no circuit.")] | UnsetType = UNSET
    open_seconds: Annotated[Seconds, Meta(description="How long the first opening lasts.")] | UnsetType = UNSET
    longest_open_seconds: Annotated[Seconds, Meta(description="How long any opening lasts.")] | UnsetType = UNSET
    healthy_seconds: (
        Annotated[Seconds, Meta(description="After so long without an opening, the next one is a first.")] | UnsetType
    ) = UNSET
    closing_calls: Annotated[Calls, Meta(description="Calls that must succeed to close it.")] | UnsetType = UNSET


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A manifest of the DSPy Module Registry: modules, implications, aliases, labels, defaults and policies."""

    schema: Annotated[str, Meta(description="Where an editor finds this schema.")] | UnsetType = msgspec.field(
        default=UNSET, name="$schema"
    )
    modules: Annotated[tuple[ModuleManifest, ...], Meta(description="The modules this file declares.")] = ()
    aliases: Annotated[dict[Name, Name], Meta(description="Alias: full name of the module it means.")] = {}
    implications: Annotated[
        dict[Capability, Annotated[tuple[Capability, ...], Meta(max_length=MAX_IMPLIED_WORDS)]],
        Meta(
            max_length=MAX_IMPLYING_WORDS,
            description="Capability: the capabilities it implies. Extends what core and other files declare.",
        ),
    ] = {}
    defaults: Annotated[
        tuple[DefaultManifest, ...],
        Meta(description="Defaults for discovered modules, by pattern; of several that match, the later wins."),
    ] = ()
    labels: Annotated[tuple[LabelManifest, ...], Meta(description="Labels of versions.")] = ()
    policies: Annotated[
        tuple[PolicyManifest, ...], Meta(description="Limits and circuits, each pattern in one file only.")
    ] = ()


def keys_of(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    """The keys that a manifest may use for this struct."""
    return struct.__struct_encode_fields__


def manifest_schema() -> dict[str, Any]:
    """The JSON Schema of a manifest (draft 2020-12), generated from the structs."""
    generated = msgspec.json.schema(Manifest)
    generated["$defs"]["RequirementsManifest"]["additionalProperties"] = True
    schema = {"$schema": _DIALECT, "title": "DSPy Module Registry manifest", **generated}
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(schema))
    return plain


def schema_text() -> str:
    """The JSON Schema as it is shipped."""
    return json.dumps(manifest_schema(), indent=2) + "\n"
