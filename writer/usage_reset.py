"""Forgetting the statistics of a module: what this stages on a draft."""

from __future__ import annotations

from dspy_registry.registry_store.layout import versioned_key, versioned_prefix
from dspy_registry.registry_store.validation import check_version, stored_name_problems
from dspy_registry.writer.draft import Draft


def reset_usage(draft: Draft, name: str, version: int | None) -> None:
    """Forget the statistics of a module, or of one version; None: of all. Raises UnknownModuleError.

    `name` is a name that has statistics, a full name, an alias or a short name. A version without statistics is
    no error. Raises InvalidArgumentError for what is no version.
    """
    check_version(version)
    found = _with_usage(draft, name)
    if found is None:
        raise draft.catalog.unknown(name)
    for key in _rows(draft, found, version):
        if draft.usage_row(key) is not None:
            draft.usage[key] = None


def _rows(draft: Draft, name: str, version: int | None) -> list[bytes]:
    if version is not None:
        return [versioned_key(name, version)]
    prefix = versioned_prefix(name)
    staged = (key for key in draft.staged_usage() if key.startswith(prefix))
    return [name.encode(), *draft.catalog.version_rows(name), *staged]


def _with_usage(draft: Draft, name: str) -> str | None:
    """The module that a name means, or the name itself where it has statistics."""
    if stored_name_problems(name):
        return None
    if draft.module(name) is not None or draft.usage_row(name.encode()) is not None:
        return name
    return draft.catalog.registered_name(name)
