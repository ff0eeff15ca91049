"""Resource levels, and which capability implies which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from registry_store.errors import VocabularyError
from registry_store.layout import MAX_TERM_BYTES

LEVELS: Final = ("low", "medium", "high", "very_high")
"""Resource levels, lowest first."""

CORE_IMPLICATIONS: Final[Mapping[str, tuple[str, ...]]] = {"complex_reasoning": ("reasoning",)}
"""What core ships: a module with `complex_reasoning` is found under `reasoning` too."""

CAPABILITY: Final = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def is_capability(word: object) -> bool:
    """At most 64 bytes of lower-case letters, digits and underscores, a letter first."""
    return type(word) is str and len(word) <= MAX_TERM_BYTES and CAPABILITY.fullmatch(word) is not None


class Vocabulary:
    """Capability implications, closed transitively. Immutable.

    Raises VocabularyError naming every malformed word, or the first cycle.
    """

    __slots__ = ("_closure", "implications")

    def __init__(self, implications: Mapping[str, Iterable[str]]) -> None:
        self.implications: dict[str, tuple[str, ...]] = {
            word: tuple(dict.fromkeys(implied)) for word, implied in sorted(implications.items())
        }
        _refuse_malformed(self.implications)
        self._closure = {word: _reachable(word, self.implications) for word in self.implications}

    @classmethod
    def combined(cls, by_source: Mapping[str, Mapping[str, Iterable[str]]]) -> Vocabulary:
        """The implications of all sources together. Raises VocabularyError."""
        vocabulary = cls({})
        for implications in by_source.values():
            vocabulary = vocabulary.merged(implications)
        return vocabulary

    def __repr__(self) -> str:
        return f"Vocabulary({self.implications!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self.implications == other.implications

    __hash__ = None  # type: ignore[assignment]  # compared, never used as a key

    def expand(self, capabilities: Iterable[str]) -> tuple[str, ...]:
        """The capabilities and all they imply, each once, in a stable order."""
        found: dict[str, None] = {}
        for capability in capabilities:
            found[capability] = None
            for implied in self._closure.get(capability, ()):
                found[implied] = None
        return tuple(found)

    def merged(self, other: Mapping[str, Iterable[str]]) -> Vocabulary:
        """A new vocabulary with the implications of both."""
        both: dict[str, tuple[str, ...]] = dict(self.implications)
        for word, implied in other.items():
            both[word] = (*both.get(word, ()), *implied)
        return Vocabulary(both)


def _refuse_malformed(implications: Mapping[str, tuple[str, ...]]) -> None:
    words = {word for pair in implications.items() for word in (pair[0], *pair[1])}
    malformed = sorted(repr(word) for word in words if not is_capability(word))
    if malformed:
        raise VocabularyError(
            f"not capability names: {', '.join(malformed)}.",
            remedy="Use at most 64 of a-z, 0-9 and _, a letter first.",
        )


def _reachable(start: str, implications: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """All words implied by `start`, nearest first; a path that returns to `start` is a cycle."""
    via: dict[str, str] = {}
    queue = [start]
    for word in queue:
        for implied in implications.get(word, ()):
            if implied == start:
                raise VocabularyError(
                    f"capability implications form a cycle: {_path(via, start, word)} -> {start}.",
                    remedy="Remove one of these implications.",
                )
            if implied not in via:
                via[implied] = word
                queue.append(implied)
    return tuple(via)


def _path(via: Mapping[str, str], start: str, word: str) -> str:
    steps = [word]
    while steps[-1] != start:
        steps.append(via[steps[-1]])
    return " -> ".join(reversed(steps))
