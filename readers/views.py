"""A mapping's items and values, without those that go while they are iterated."""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView

from dspy_registry.registry_store.records import ModuleInfo


class Items(ItemsView[str, ModuleInfo]):
    """(name, module) in the order of the mapping."""

    _mapping: Mapping[str, ModuleInfo]

    def __iter__(self) -> Iterator[tuple[str, ModuleInfo]]:
        for name in self._mapping:
            info = self._mapping.get(name)
            if info is not None:
                yield name, info


class Values(ValuesView[ModuleInfo]):
    """The modules in the order of the mapping."""

    _mapping: Mapping[str, ModuleInfo]

    def __iter__(self) -> Iterator[ModuleInfo]:
        for _, info in Items(self._mapping):
            yield info
