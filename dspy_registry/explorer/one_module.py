"""One module: what it is and who said so, its versions side by side, how it is used, and how to take a change back."""

from __future__ import annotations

import shlex
from itertools import pairwise
from typing import Any, Final

from dspy_registry.cli.stats import plain as plain_usage
from dspy_registry.cli.stats import plain_version
from dspy_registry.readers.published import program_differences
from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.changes import shown_requester
from dspy_registry.registry_store.errors import CorruptRecordError, UnknownModuleError
from dspy_registry.registry_store.history import KeptVersion, changed_between
from dspy_registry.registry_store.labels import Label
from dspy_registry.registry_store.records import ModuleInfo, StoredModule, to_plain
from dspy_registry.registry_store.rollout_rows import load_rollouts
from dspy_registry.registry_store.usage import SIZES

_ALIASES: Final = 64


def one_module(snapshot: Snapshot, asked: str, folder: str | None = None) -> dict[str, Any]:
    """Plain values for JSON and the page. `asked` is as for `history`. Raises UnknownModuleError, AmbiguousNameError.

    `folder` goes into the commands, None: the registry is the default one. An unregistered module has its versions and
    its usage.
    """
    versions = snapshot.versions(asked)
    name = versions.name
    loaded = [_loaded(kept) for kept in versions.kept]
    shown = {
        "name": name,
        "registered": bool(versions.in_force),
        "version": versions.in_force or None,
        "versions": _compared(snapshot, loaded),
        "rollback": [
            {"to": kept.version, "command": rollback_command(name, kept.version, folder)}
            for kept in versions.kept
            if kept.version != versions.in_force
        ],
        "usage": _usage(snapshot, name),
        "usage_by_version": [
            plain_version(snapshot.usage(name, kept.version))
            for kept in versions.kept
            if versions.in_force and snapshot.usage(name, kept.version).calls
        ],
    }
    return {**shown, **(_in_force(snapshot, name) if versions.in_force else {})}


def _in_force(snapshot: Snapshot, name: str) -> dict[str, Any]:
    stored = snapshot.describe(name)
    info = stored.info
    aliases = [alias for alias, meaning in snapshot.aliases().items() if meaning.name == name]
    return {
        "fields": _fields(info),
        "sources": snapshot.explain(name),
        "implied_capabilities": list(snapshot.implied_capabilities(name)),
        "overrides": list(snapshot.overridden(name)),
        "aliases": aliases[:_ALIASES],
        "labels": {label: _label(meaning) for label, meaning in snapshot.labels(name).items()},
        "rollouts": _rollouts(snapshot, name),
        "source": stored.provenance.source,
        "revision": stored.provenance.revision,
        "updated_at": stored.provenance.updated_at,
        "by": shown_requester(stored.provenance.by),
        "limits": [_limit(snapshot, name, size) for size in SIZES],
    }


def _label(meaning: Label) -> dict[str, Any]:
    return {
        "percents": meaning.percents,
        "source": meaning.source,
        "by": shown_requester(meaning.by),
        "revision": meaning.revision,
        "updated_at": meaning.updated_at,
    }


def _rollouts(snapshot: Snapshot, name: str) -> list[dict[str, Any]]:
    """The last rollout of each label of a module: where it stands, and why it ended. `status` tells of damaged ones."""
    return [
        {
            "label": each.label,
            "old": each.old,
            "new": each.new,
            "state": each.state,
            "percent": each.weights.get(each.new, 0.0),
            "reason": each.reason,
        }
        for each in snapshot._in_transaction(load_rollouts).sound
        if each.name == name
    ]


def _limit(snapshot: Snapshot, name: str, size: str) -> dict[str, Any]:
    """What is advised for an input of one size class, beside what is declared. Milliseconds."""
    characters = _CHARACTERS[size]
    return {
        "size": size,
        "declared_ms": snapshot.estimate_duration(name, size),
        "expected_ms": snapshot.estimate_duration(name, size, basis="auto"),
        "limit_ms": snapshot.routing_recommendation(name, input_size=characters, basis="auto").timeout,
    }


_CHARACTERS: Final = {"small": 50, "normal": None, "large": 5_000, "very_large": 50_000}
"""An input of each size class."""


def _usage(snapshot: Snapshot, name: str) -> dict[str, Any] | None:
    try:
        return plain_usage(snapshot.usage(name))
    except UnknownModuleError:  # unregistered, and never called
        return None


def _loaded(kept: KeptVersion) -> tuple[int, StoredModule | None, str]:
    try:
        return kept.version, kept.load(), ""
    except CorruptRecordError as error:
        return kept.version, None, error.message


def _compared(snapshot: Snapshot, loaded: list[tuple[int, StoredModule | None, str]]) -> list[dict[str, Any]]:
    """Each version, newest first, with how it differs from the one before."""
    return [_version(snapshot, this, before) for this, before in pairwise([*loaded, (0, None, "")])]


def _version(
    snapshot: Snapshot, this: tuple[int, StoredModule | None, str], before: tuple[int, StoredModule | None, str]
) -> dict[str, Any]:
    number, stored, damage = this
    if stored is None:
        return {"version": number, "damaged": damage, "changes": []}
    kept = stored.provenance
    return {
        "version": number,
        "revision": kept.revision,
        "updated_at": kept.updated_at,
        "source": kept.source,
        "by": shown_requester(kept.by),
        "program": kept.program.hex() or None,
        "before": before[0] or None,
        "changes": [] if before[1] is None else _changes(snapshot, before[1], stored),
    }


def _changes(snapshot: Snapshot, before: StoredModule, after: StoredModule) -> list[dict[str, Any]]:
    """Fields that differ, and of their programs the parts of each predictor."""
    old, new = before.provenance.program, after.provenance.program
    fields = changed_between(before, after)
    parts = {
        f"program.{each.predictor}.{each.part}": (list(each.old), list(each.new))
        for each in program_differences(snapshot, old, new)
    }
    return [{"field": field, "before": was, "after": now} for field, (was, now) in {**fields, **parts}.items()]


def _fields(info: ModuleInfo) -> dict[str, Any]:
    """By field; requirements and metadata by key, as in `requirements.memory`."""
    flat: dict[str, Any] = {}
    for field, value in to_plain(info).items():
        if isinstance(value, dict):
            flat.update({f"{field}.{key}": part for key, part in value.items()})
        else:
            flat[field] = value
    return flat


def rollback_command(name: str, version: int, folder: str | None) -> str:
    """The command that registers a version again."""
    return _command(["rollback", name, "--to", str(version)], folder)


def release_command(name: str, folder: str | None) -> str:
    """The command that ends an override."""
    return _command(["release", name], folder)


def _command(words: list[str], folder: str | None) -> str:
    return shlex.join(["dspy-registry", *words, *(("--path", folder) if folder is not None else ())])
