"""The limits of calls at once that a module has, and how many calls are under way."""

from __future__ import annotations

from typing import Any

from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.registry_store.limits_in_use import limits_in_use


def limits_of_module(registry: Registry, name: str) -> list[dict[str, Any]]:
    """Plain values, one for each limit. `calls` None: this user may not look. Raises UnknownModuleError."""
    limits = registry.limits_of(name)
    try:
        used = {each.key: each.calls for each in limits_in_use(registry.path, [limit.key for limit in limits])}
    except RegistryError:
        return [{"limit": limit.key, "most": limit.calls, "calls": None} for limit in limits]
    return [{"limit": limit.key, "most": limit.calls, "calls": used.get(limit.key, 0)} for limit in limits]
