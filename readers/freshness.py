"""Keeping a cache up to date with the revision word.

A cache is valid at a word if all its values are the newest committed ones for a reader who sees that word. The word may
be odd, too: values that the commit under way changes were dropped and are not kept again (`pending`), and all other
values are the same before and after that commit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from dspy_registry.readers.cache import Cache
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.changes import Change, change_codec
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.revision import RETIRED, RevisionFile, is_sound
from dspy_registry.registry_store.selection import split

_STEPS_WORTH_READING: Final = 256
_TRIES: Final = 4


class _Everything(frozenset[str]):
    """The set that holds every key."""

    def __contains__(self, key: object) -> bool:
        return True

    def isdisjoint(self, keys: Iterable[object]) -> bool:
        return False


_NOTHING: Final[frozenset[str]] = frozenset()
_EVERYTHING: Final = _Everything()


class Freshness:
    """The state of one cache against one revision file. Use it inside the gate."""

    __slots__ = ("_cache", "_environment", "_file", "_followed_to", "pending")

    def __init__(self, environment: Environment, file: RevisionFile, cache: Cache) -> None:
        self._environment = environment
        self._file = file
        self._cache = cache
        self._followed_to = -1  # the cache has dropped what any change up to this revision touched
        self.pending: frozenset[str] = _EVERYTHING  # keys and terms that must not be cached now

    def is_pending(self, asked: str) -> bool:
        """Whether a commit under way may change what was asked: a name, or a version of it after an @."""
        return asked in self.pending or ("@" in asked and split(asked)[0] in self.pending)

    def advance(self) -> float:
        """Bring the cache up to the word as it is now. Returns the word at which it is valid.

        Returns RETIRED when the file was retired, when no writer can have stored the word, or when the word changed
        too fast to be followed.
        """
        for _ in range(_TRIES):
            word = self._file.word[()]
            if not is_sound(word):
                break
            revision, is_under_way = divmod(int(word), 2)
            if self._follow(word, revision, bool(is_under_way)):
                return word
        self.pending = _EVERYTHING
        return RETIRED

    def _follow(self, word: float, revision: int, is_under_way: bool) -> bool:
        landed = revision - 1 if is_under_way else revision
        # A new reader needs none: its cache is empty, and to make the decoder would take longer than all else.
        is_of_use = is_under_way or landed == self._followed_to + 1
        announced = self._file.announcement(revision) if is_of_use else None
        if self._file.word[()] != word:
            return False
        if revision < self._followed_to:  # older files were copied over these, so the numbers now mean other commits
            self._cache.forget()
            self._followed_to = -1
        self._drop_until(landed, announced)
        self.pending = _announced_keys(announced) if is_under_way else _NOTHING
        if is_under_way:
            self._cache.drop(announced or Change(revision, 0, everything=True))
        self._followed_to = max(self._followed_to, revision)
        return True

    def _drop_until(self, landed: int, announced: Change | None) -> None:
        """Drop what changed after `_followed_to`, up to `landed`: by the announcement, by the log, or everything."""
        if landed <= self._followed_to:
            return
        if landed == self._followed_to + 1 and announced is not None and announced.revision == landed:
            self._cache.drop(announced)
            return
        changes = self._logged(self._followed_to + 1, landed)
        if changes is None:
            self._cache.forget()
            return
        for change in changes:
            self._cache.drop(change)

    def _logged(self, first: int, last: int) -> list[Change] | None:
        """The changes of these revisions. None: the log no longer holds all of them, or there are too many to read."""
        if first <= 0 or last - first >= _STEPS_WORTH_READING:
            return None
        with self._environment.reading() as txn:
            database = self._environment.dbs.changes
            keys = [layout.revision_key(revision) for revision in range(first, last + 1)]
            found = [(txn.get(key, None, database), key) for key in keys]
        if any(value is None for value, _ in found):
            return None
        return [change_codec.load(*row, self._environment.dbs.format) for row in found]


def _announced_keys(announced: Change | None) -> frozenset[str]:
    if announced is None or announced.everything:
        return _EVERYTHING
    return frozenset((*announced.keys, *announced.terms))
