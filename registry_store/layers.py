"""Layers: what each source declares of a module, and how layers make one record. Pure functions.

Precedence, highest first: client, manifest, core, defaults, discovered. A client registers whole records, so nothing
is added to what it declares. The others declare single fields; a lower layer fills in what the higher ones leave out.
Mappings (requirements, metadata) are merged key by key.

Defaults are rules for discovered modules whose name matches a pattern. The fields that they give a module are stored as
a layer. It is removed when the module is no longer discovered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec

from dspy_registry.registry_store.codec import Sealed
from dspy_registry.registry_store.layout import LAYERS, META
from dspy_registry.registry_store.records import CLIENT as CLIENT
from dspy_registry.registry_store.records import ModuleInfo, StoredModule, from_plain, to_plain

CORE: Final = "core"
DISCOVERED: Final = "discovered"
MANIFEST_PREFIX: Final = "manifest:"
DEFAULTS_PREFIX: Final = "defaults:"

UNSET: Final = "unset"
"""What `field_sources` calls the source of a field that no source declares."""

MERGED_FIELDS: Final = ("requirements", "metadata")


class Layer(msgspec.Struct, frozen=True, array_like=True):
    """What one source declares of one module: only the fields it names, in plain form (see `to_plain`)."""

    source: str
    fields: dict[str, Any]


class Default(msgspec.Struct, frozen=True, array_like=True):
    """A rule: discovered modules whose name matches the pattern get these fields. `*` and `?` match dots too."""

    match: str
    fields: dict[str, Any]


Defaults = dict[str, tuple[Default, ...]]  # by source; within one source, a later rule wins over an earlier one

layer_codec = Sealed(Layer, "a layer", LAYERS)
defaults_codec = Sealed(Defaults, "the defaults", META)


def rank(source: str) -> int:
    """The precedence of a source; the higher number wins. Raises KeyError for an unknown source."""
    if source.startswith(MANIFEST_PREFIX):
        return 3
    if source.startswith(DEFAULTS_PREFIX):
        return 1
    return {CLIENT: 4, CORE: 2, DISCOVERED: 0}[source]


def _ascending(layers: Iterable[Layer]) -> list[Layer]:
    """Lowest precedence first. Among defaults, the source that is later in the alphabet wins."""
    return sorted(layers, key=lambda layer: (rank(layer.source), layer.source))


def with_defaults(name: str, layers: Mapping[str, Layer], defaults: Defaults) -> dict[str, Layer]:
    """A new dict of a module's layers, in which its layers of defaults are replaced by those of these rules."""
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
    """The module that these layers make, and its source: the highest layer that is not of defaults.

    There must be at least one layer, and none of a client.
    """
    fields: dict[str, Any] = {}
    source = DISCOVERED
    for layer in _ascending(layers):
        source = source if layer.source.startswith(DEFAULTS_PREFIX) else layer.source
        _overlay(fields, layer.fields)
    return from_plain({**fields, "name": name}), source


def beneath(source: str, layers: Iterable[Layer]) -> tuple[str, ...]:
    """The sources whose declarations of a module do not count, for its record from `source` is an override.

    Highest precedence first; () when the record is no client's, or only clients declare the module.
    """
    if source != CLIENT:
        return ()
    return tuple(layer.source for layer in reversed(_ascending(layers)))


def field_sources(stored: StoredModule, layers: Iterable[Layer]) -> dict[str, str]:
    """The source of each field of a module that has these layers; for requirements and metadata, of each key.

    A client registers whole records, so it is the source of all fields of its modules.
    """
    is_clients = stored.provenance.source == CLIENT
    declared = {} if is_clients else _declared(layers)
    found = {}
    for field, value in to_plain(stored.info).items():
        keys = [f"{field}.{key}" for key in value] if field in MERGED_FIELDS else [field]
        found.update({key: CLIENT if is_clients else declared.get(key, UNSET) for key in keys})
    del found["name"]
    return found


def _declared(layers: Iterable[Layer]) -> dict[str, str]:
    """The source of each field that a layer declares; for merged fields, of each key."""
    found: dict[str, str] = {}
    for layer in _ascending(layers):
        for field, value in layer.fields.items():
            if field in MERGED_FIELDS and isinstance(value, Mapping):
                found.update({f"{field}.{key}": layer.source for key in value})
            else:
                found[field] = layer.source
    return found
