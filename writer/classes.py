"""Discovered modules by the class that each is: an index that the writer keeps from one commit to the next."""

from __future__ import annotations

from collections.abc import Iterable

from dspy_registry.registry_store.layers import Layer


class ClassIndex:
    """Where a class is defined -> the name that discovery registered it by.

    Read when it is first asked, and again after a commit that changed layers.
    """

    def __init__(self) -> None:
        self._names: dict[str, str | None] | None = None

    @property
    def is_read(self) -> bool:
        """Whether `name_of` can answer."""
        return self._names is not None

    def read(self, discovered: Iterable[tuple[str, Layer]]) -> None:
        """Take in (name, layer) of every discovered module. A class that has two names belongs to neither."""
        names: dict[str, str | None] = {}
        for name, layer in discovered:
            metadata = layer.fields.get("metadata")
            place = metadata.get("class") if isinstance(metadata, dict) else None
            if isinstance(place, str):
                place = plain_place(place)
                names[place] = None if place in names else name
        self._names = names

    def name_of(self, place: str) -> str | None:
        """The registered name of the class defined there (module and qualified name). None: none, or several."""
        return (self._names or {}).get(plain_place(place))

    def forget(self) -> None:
        """Layers are about to change."""
        self._names = None


def plain_place(place: str) -> str:
    """The place of a class without the mark that it was made in a function, as callbacks report it."""
    return place.replace(".<locals>", "")
