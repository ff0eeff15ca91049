"""Layers: what each source declares of a module, and how they make one record. Pure.

Precedence, highest first: client, manifest, core, discovered. A client registers whole records, so nothing is added
to what it declares. The others declare the fields they name; a lower layer fills in what the higher leave out.
Mappings (requirements, metadata) are merged key by key.

Defaults for discovered modules come between core and discovered: rules that match names by a pattern. What they give
a module is kept as a layer of its own, which goes when the module is no longer discovered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.records import CLIENT as CLIENT
from dspy_registry.registry_store.records import ModuleInfo, from_plain

CORE: Final = "core"
DISCOVERED: Final = "discovered"
MANIFEST_PREFIX: Final = "manifest:"
DEFAULTS_PREFIX: Final = "defaults:"

MERGED_FIELDS: Final = ("requirements", "metadata")


class Layer(msgspec.Struct, frozen=True, array_like=True):
    """What one source declares of one module: only the fields it names, in plain form (see `to_plain`)."""

    source: str
    fields: dict[str, Any]


class Default(msgspec.Struct, frozen=True, array_like=True):
    """A rule: discovered modules whose name matches the pattern (`*` and `?` match dots too) get these fields."""

    match: str
    fields: dict[str, Any]


Defaults = dict[str, tuple[Default, ...]]  # by source; within one source, a later rule wins over an earlier one

layer_codec = Sealed(Layer, "a layer")
defaults_codec = Sealed(Defaults, "the defaults")


def rank(source: str) -> int:
    """Precedence of a source: the larger wins."""
    if source.startswith(MANIFEST_PREFIX):
        return 3
    if source.startswith(DEFAULTS_PREFIX):
        return 1
    return {CLIENT: 4, CORE: 2, DISCOVERED: 0}[source]


def _ascending(layers: Iterable[Layer]) -> list[Layer]:
    """Weakest first. Of defaults, those of the later source win."""
    return sorted(layers, key=lambda layer: (rank(layer.source), layer.source))


def with_defaults(name: str, layers: Mapping[str, Layer], defaults: Defaults) -> dict[str, Layer]:
    """The layers of a module, with what the defaults give it now instead of what they gave it before."""
    found = {source: layer for source, layer in layers.items() if not source.startswith(DEFAULTS_PREFIX)}
    if DISCOVERED not in found:
        return found
    for source, rules in defaults.items():
        fields: dict[str, Any] = {}
        for rule in rules:
            if fnmatchcase(name, rule.match):
                _overlay(fields, rule.fields)
        if fields:
            found[source] = Layer(source, fields)
    return found


def _overlay(fields: dict[str, Any], declared: Mapping[str, Any]) -> None:
    for field, value in declared.items():
        if field in MERGED_FIELDS and isinstance(value, Mapping):
            fields[field] = {**fields.get(field, {}), **value}
        else:
            fields[field] = value


def merge(name: str, layers: Iterable[Layer]) -> tuple[ModuleInfo, str]:
    """The module that the layers (at least one, none of a client) make together, and its source.

    The source is the highest that declares the module; defaults declare none.
    """
    fields: dict[str, Any] = {}
    source = DISCOVERED
    for layer in _ascending(layers):
        source = source if layer.source.startswith(DEFAULTS_PREFIX) else layer.source
        _overlay(fields, layer.fields)
    return from_plain({**fields, "name": name}), source


def explain(layers: Iterable[Layer]) -> dict[str, str]:
    """Which source gave each field (`metadata.x` for merged keys); fields that none names are absent."""
    given: dict[str, str] = {}
    for layer in _ascending(layers):
        for field, value in layer.fields.items():
            if field in MERGED_FIELDS and isinstance(value, Mapping):
                given.update({f"{field}.{key}": layer.source for key in value})
            else:
                given[field] = layer.source
    return given
