"""Aliases by the module that they mean: an index that the writer keeps, and the changes that a draft stages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from dspy_registry.registry_store.changes import Alias, alias_codec
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.records import By

DAMAGED: Final = Alias("", "")
"""The meaning of an alias whose bytes cannot be read: no module, until it is set again or removed."""

_UNREAD: Final = -1


def meaning_of(value: bytes, key: bytes, format: int) -> Alias:
    """What the alias means that is stored under this key as these bytes."""
    try:
        meaning: Alias = alias_codec.load(value, key, format)
    except CorruptRecordError:
        return DAMAGED
    return meaning


class AliasIndex:
    """The aliases of each module, kept from one commit to the next, so that a registration need not read all aliases.

    It is right for one revision. Only this writer changes aliases, and each change makes a revision. When the registry
    has a revision that `follow` was not told of, a commit has failed, and all aliases are read again.
    """

    def __init__(self) -> None:
        self._revision = _UNREAD
        self._by_name: dict[str, dict[str, None]] = {}

    def of(self, name: str, revision: int, read: Callable[[], Iterable[tuple[str, Alias]]]) -> Collection[str]:
        """The aliases of a module in this revision. `read` gives all aliases."""
        if self._revision != revision:
            self._revision = _UNREAD
            by_name: dict[str, dict[str, None]] = defaultdict(dict)
            for alias, meaning in read():
                by_name[meaning.name][alias] = None
            self._by_name, self._revision = dict(by_name), revision
        return self._by_name.get(name, ())

    def follow(self, before: int, after: int, staged: StagedAliases) -> None:
        """A commit led from one revision to the next. An interrupt in here leaves the index unread."""
        if self._revision != before:
            return
        self._revision = _UNREAD
        for name, changes in staged.by_name.items():
            current = aliases_after(self._by_name.get(name, ()), changes)
            if current:
                self._by_name[name] = current
            else:
                self._by_name.pop(name, None)
        self._revision = after


class StagedAliases:
    """Aliases that a draft sets or removes (None). For each module touched: whether an alias means it afterwards."""

    def __init__(self) -> None:
        self.meanings: dict[str, Alias | None] = {}
        self.by_name: dict[str, dict[str, bool]] = {}
        self.by: dict[str, By | None] = {}
        self.added = 0

    def __bool__(self) -> bool:
        return bool(self.meanings)

    def put(self, alias: str, old: Alias | None, new: Alias | None, by: By | None = None) -> None:
        """Change what an alias means, as `by` asked. None: it is not declared, or it is not known who asked."""
        if old is not None:
            self.by_name.setdefault(old.name, {})[alias] = False
        if new is not None:
            self.by_name.setdefault(new.name, {})[alias] = True
        self.added += (new is not None) - (old is not None)
        self.meanings[alias] = new
        self.by[alias] = by

    def absorb(self, later: StagedAliases) -> None:
        """Take over what was staged on top of this."""
        self.meanings.update(later.meanings)
        self.by.update(later.by)
        for name, changes in later.by_name.items():
            self.by_name.setdefault(name, {}).update(changes)
        self.added += later.added


def aliases_after(below: Iterable[str], changes: Mapping[str, bool]) -> dict[str, None]:
    """The aliases of a module, from those it had and what has changed."""
    return {alias: None for alias in (*below, *changes) if changes.get(alias, True)}
