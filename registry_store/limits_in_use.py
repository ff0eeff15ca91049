"""How many calls each limit of the host counts now. A look at the file of leases that takes nothing from anybody."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dspy_registry.registry_store.errors import RegistryNotFoundError
from dspy_registry.registry_store.lease_cells import call_in, cells_of
from dspy_registry.registry_store.lease_file import LeaseFile, RegionAt
from dspy_registry.registry_store.policy import MODULE, POOL, Declaration, limits_of


class LimitInUse(NamedTuple):
    """A limit that calls were begun under. `key` is "module:NAME" or "pool:NAME"; `calls` are under way now."""

    key: str
    calls: int


def limits_in_use(folder: Path, keys: Iterable[str] | None = None) -> list[LimitInUse]:
    """Every limit that was ever used since the file was made, by key; [] without the file. `keys` narrows them.

    Raises StoreError, StorePermissionError.
    """
    wanted = None if keys is None else frozenset(keys)
    try:
        file = LeaseFile(folder)
    except RegistryNotFoundError:
        return []
    counts: dict[str, int] = {}
    try:
        for region in file.regions():
            if region.key.startswith((MODULE, POOL)) and (wanted is None or region.key in wanted):
                counts[region.key] = counts.get(region.key, 0) + _held(file, region)
    finally:
        file.close()
    return [LimitInUse(key, counts[key]) for key in sorted(counts)]


def _held(file: LeaseFile, region: RegionAt) -> int:
    """The calls in a region, of this process too: its own file is another description."""
    return sum(call_in(file, start) is not None for start in cells_of(region))


def module_of(key: str) -> str:
    """The full name of the module whose limit this is; "": it is a pool's."""
    return key.removeprefix(MODULE) if key.startswith(MODULE) else ""


def limit_of(key: str, declarations: Iterable[Declaration], pool_of: dict[str, str]) -> int | None:
    """How many calls the limit of this key allows, by the policies in force. None: there is no limit any more.

    `pool_of` has the pool of a module by its full name.
    """
    name = module_of(key)
    pool = pool_of.get(name, "") if name else key.removeprefix(POOL)
    return next((limit.calls for limit in limits_of(declarations, name, pool) if limit.key == key), None)
