"""The rows of a draft's layers and programs. Neither is part of a look-up, so neither makes a change by itself."""

from __future__ import annotations

from dspy_registry.registry_store import layout
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.layers import defaults_codec, layer_codec
from dspy_registry.writer.collection import program_rows
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.held_programs import held_after
from dspy_registry.writer.operations import Operations


def write_layers(draft: Draft, result: Operations) -> None:
    """Add what is put and deleted of layers and of the rules for discovered modules."""
    format = draft.catalog.format
    if draft.defaults is not None:
        rules = defaults_codec.dump(draft.defaults, layout.META_DEFAULTS, format)
        result.puts[layout.META][layout.META_DEFAULTS] = rules
    for name, layers in draft.layers.items():
        old = draft.catalog.layers(name)
        for source in old.keys() - layers.keys():
            result.deletes[layout.LAYERS].append(layout.layer_key(name, source))
        for source, layer in layers.items():
            if source not in old or encode(old[source]) != encode(layer):  # as bytes: 1 is not True
                key = layout.layer_key(name, source)
                result.puts[layout.LAYERS][key] = layer_codec.dump(layer, key, format)


def write_programs(draft: Draft, result: Operations) -> None:
    """Add documents that a version names now, and delete those that none names. `result` has the versions already."""
    if not (draft.programs or draft.cluster or draft.catalog.has_programs):
        return
    has_versions = any(result.puts.get(name) or result.deletes.get(name) for name in (layout.MODULES, layout.HISTORY))
    held, released = held_after(draft)
    if draft.programs or released or (has_versions and draft.catalog.has_programs):
        rows, gone, result.references = program_rows(draft, result.puts, result.deletes, held, released)
        result.puts[layout.PROGRAMS].update(rows)
        result.deletes[layout.PROGRAMS] += gone
