"""Aliases by the module that they mean, which is not how they are stored: kept by the writer, and staged by a draft."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from dspy_registry.registry_store.changes import Alias, alias_codec
from dspy_registry.registry_store.errors import CorruptRecordError

DAMAGED: Final = Alias("", "")
"""What an alias means whose bytes cannot be read: no module, until it is set anew or removed."""

_UNREAD: Final = -1


def meaning_of(value: bytes) -> Alias:
    """What an alias of these bytes means."""
    try:
        meaning: Alias = alias_codec.load(value)
    except CorruptRecordError:
        return DAMAGED
    return meaning


class AliasIndex:
    """The aliases of each module, kept from one commit to the next: a registration must not read all that there are.

    It is right for one revision. Only this writer changes aliases, and each change of one makes a revision, so where
    the registry has another than `follow` was told of, a commit has failed, and all are read anew.
    """

    def __init__(self) -> None:
        self._revision = _UNREAD
        self._by_name: dict[str, dict[str, None]] = {}

    def of(self, name: str, revision: int, read: Callable[[], Iterable[tuple[str, Alias]]]) -> Collection[str]:
        """The aliases of a module in the revision that stands; `read` gives all there are."""
        if self._revision != revision:
            self._revision = _UNREAD
            by_name: dict[str, dict[str, None]] = defaultdict(dict)
            for alias, meaning in read():
                by_name[meaning.name][alias] = None
            self._by_name, self._revision = dict(by_name), revision
        return self._by_name.get(name, ())

    def follow(self, before: int, after: int, staged: StagedAliases) -> None:
        """A commit has made one revision of another. Interrupted, it leaves the index unread."""
        if self._revision != before:
            return
        self._revision = _UNREAD
        for name, changes in staged.by_name.items():
            standing = standing_aliases(self._by_name.get(name, ()), changes)
            if standing:
                self._by_name[name] = standing
            else:
                self._by_name.pop(name, None)
        self._revision = after


class StagedAliases:
    """Aliases that a draft sets, or removes (None); and for each module touched, whether an alias now means it."""

    def __init__(self) -> None:
        self.meanings: dict[str, Alias | None] = {}
        self.by_name: dict[str, dict[str, bool]] = {}
        self.added = 0

    def __bool__(self) -> bool:
        return bool(self.meanings)

    def put(self, alias: str, old: Alias | None, new: Alias | None) -> None:
        """Let an alias mean something else than it did."""
        if old is not None:
            self.by_name.setdefault(old.name, {})[alias] = False
        if new is not None:
            self.by_name.setdefault(new.name, {})[alias] = True
        self.added += (new is not None) - (old is not None)
        self.meanings[alias] = new

    def absorb(self, later: StagedAliases) -> None:
        """Take over what was staged on top of this."""
        self.meanings.update(later.meanings)
        for name, changes in later.by_name.items():
            self.by_name.setdefault(name, {}).update(changes)
        self.added += later.added


def standing_aliases(below: Iterable[str], changes: Mapping[str, bool]) -> dict[str, None]:
    """The aliases of a module, from those it had and what has changed."""
    return {alias: None for alias in (*below, *changes) if changes.get(alias, True)}
