"""`items()` and `values()` of a mapping that other processes change while it is read."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView

from dspy_registry.registry_store.records import ModuleInfo


class Items(ItemsView[str, ModuleInfo]):
    """Leaves out what was removed since its name was read."""

    _mapping: Mapping[str, ModuleInfo]

    def __iter__(self) -> Iterator[tuple[str, ModuleInfo]]:
        for name in self._mapping:
            info = self._mapping.get(name)
            if info is not None:
                yield name, info


class Values(ValuesView[ModuleInfo]):
    """As `Items`."""

    _mapping: Mapping[str, ModuleInfo]

    def __iter__(self) -> Iterator[ModuleInfo]:
        for _, info in Items(self._mapping):
            yield info
