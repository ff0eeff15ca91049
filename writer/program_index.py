"""How many kept versions name each stored program, so that a commit knows which documents to collect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

_UNREAD = -1


class ProgramIndex:
    """References by digest, kept from one commit to the next. It is right for one revision, as `AliasIndex` is.

    It is read at the first commit that changes a module of a registry with programs, and again after a failed commit.
    """

    def __init__(self) -> None:
        self._revision = _UNREAD
        self._references: Counter[bytes] = Counter()

    def references(
        self, revision: int, named: Callable[[], Iterable[bytes]], stored: Callable[[], Iterable[bytes]]
    ) -> Mapping[bytes, int]:
        """References in this revision, by digest. 0: the document is stored, and no version names it.

        `named` gives the digest of each kept version that has one, `stored` the digests of all documents.
        """
        if self._revision != revision:
            self._revision = _UNREAD
            self._references = Counter(dict.fromkeys(stored(), 0))
            self._references.update(named())
            self._revision = revision
        return self._references

    def follow(self, before: int, after: int, changes: Mapping[bytes, int]) -> None:
        """A commit led from one revision to the next. An interrupt in here leaves the index unread."""
        if self._revision != before:
            return
        self._revision = _UNREAD
        for digest, change in changes.items():
            self._references[digest] += change
        for digest in [digest for digest, count in self._references.items() if count <= 0]:
            del self._references[digest]
        self._revision = after

    def forget(self) -> None:
        """Read the references again: a damaged record is replaced, and it is not known what it named."""
        self._revision = _UNREAD
