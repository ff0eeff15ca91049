"""Resource levels, and which capability implies which."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import chain, islice
from typing import Any, Final

from dspy_registry.registry_store.errors import VocabularyError
from dspy_registry.registry_store.layout import MAX_IMPLIED_WORDS, MAX_IMPLYING_WORDS, MAX_REACHED_WORDS, MAX_TERM_BYTES
from dspy_registry.registry_store.wording import listed, shown_value

LEVELS: Final = ("low", "medium", "high", "very_high")
"""Resource levels, lowest first."""

CORE_IMPLICATIONS: Final[Mapping[str, tuple[str, ...]]] = {"complex_reasoning": ("reasoning",)}
"""What core ships: a module with `complex_reasoning` is found under `reasoning` too."""

_SHOWN: Final = 20
_REMEDY: Final = (
    f"A word has at most {MAX_TERM_BYTES} of a-z, 0-9 and _, and begins with a letter. Let fewer words imply others, "
    "or let modules list more of their capabilities themselves."
)

CAPABILITY: Final = re.compile(r"[a-z][a-z0-9_]*", re.ASCII)


def is_capability(word: object) -> bool:
    """Whether this is a string of at most 64 lower-case letters, digits and underscores that begins with a letter."""
    return type(word) is str and len(word) <= MAX_TERM_BYTES and CAPABILITY.fullmatch(word) is not None


class Vocabulary:
    """Capability implications, closed transitively. Immutable.

    Raises VocabularyError. It names everything that is malformed or beyond the limits. If nothing is, it names a
    cycle. If there is no cycle, it names the words that imply too many others over several steps.
    """

    __slots__ = ("_closure", "implications")

    def __init__(self, implications: Mapping[str, Iterable[str]]) -> None:
        self.implications: dict[str, tuple[str, ...]] = {
            word: tuple(dict.fromkeys(implied)) for word, implied in sorted(implications.items())
        }
        _refuse(_problems(self.implications))
        _refuse(_cycles(self.implications))
        self._closure = _closure(self.implications)
        _refuse(_far_reaching(self._closure))

    @classmethod
    def combined(cls, by_source: Mapping[str, Mapping[str, Iterable[str]]]) -> Vocabulary:
        """The implications of all sources together. Raises VocabularyError."""
        return cls(_together(by_source.values()))

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
        return Vocabulary(_together((self.implications, other)))


def as_implications(given: object) -> dict[str, tuple[str, ...]]:
    """A caller's implications, each as a tuple of words. Raises VocabularyError, which names all that is wrong.

    A single string in place of a list is refused: its letters would be taken for words.
    """
    if not isinstance(given, Mapping):
        raise VocabularyError(f"implications: a {type(given).__name__} is not a mapping of words to lists of words.")
    found: dict[Any, tuple[Any, ...] | None] = {word: _words(implied) for word, implied in given.items()}
    _refuse(_shape_problems(found))
    return {word: implied for word, implied in found.items() if implied is not None}


def find_cycle(implications: Mapping[str, Iterable[str]]) -> tuple[str, ...]:
    """One cycle, which begins and ends with the alphabetically first of its words; empty: there is no cycle."""
    try:
        TopologicalSorter(implications).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1][:0:-1]
        at = circle.index(min(circle))
        return (*circle[at:], *circle[:at], circle[at])
    return ()


def _together(sources: Iterable[Mapping[str, Iterable[str]]]) -> dict[str, list[str]]:
    together: dict[str, list[str]] = {}
    for implications in sources:
        for word, implied in implications.items():
            together.setdefault(word, []).extend(implied)
    return together


def _closure(implications: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """The words that each word implies over any number of steps, nearest first; at most one more than is allowed."""
    closure: dict[str, tuple[str, ...]] = {}
    for word in TopologicalSorter(implications).static_order():  # the words that it implies come before it
        implied = implications.get(word, ())
        if implied:
            reached = dict.fromkeys(chain(implied, *(closure.get(each, ()) for each in implied)))
            closure[word] = tuple(islice(reached, MAX_REACHED_WORDS + 1))
    return closure


# What is wrong


def _refuse(problems: Iterator[str]) -> None:
    found = tuple(problems)
    if found:
        raise VocabularyError(f"{'; '.join(found)}.", remedy=_REMEDY)


def _shape_problems(given: Mapping[Any, tuple[Any, ...] | None]) -> Iterator[str]:
    words = [word for implied in given.values() for word in implied or ()]
    malformed = [*dict.fromkeys(shown_value(word) for word in (*given, *words) if type(word) is not str)]
    if malformed:
        yield f"not texts: {listed(malformed, _SHOWN)}"
    lone = [shown_value(word) for word, implied in given.items() if implied is None]
    if lone:
        yield f"implied words must be a list; no list is given for {listed(lone, _SHOWN)}"


def _words(implied: Any) -> tuple[Any, ...] | None:
    """The implied words as a tuple; None: a caller gave something else than several words."""
    is_several = isinstance(implied, Iterable) and not isinstance(implied, str | bytes | bytearray | Mapping)
    return tuple(implied) if is_several else None


def _problems(implications: Mapping[str, Sequence[str]]) -> Iterator[str]:
    words = {word for pair in implications.items() for word in (pair[0], *pair[1])}
    malformed = sorted(shown_value(word) for word in words if not is_capability(word))
    if malformed:
        yield f"not capability names: {listed(malformed, _SHOWN)}"
    if len(implications) > MAX_IMPLYING_WORDS:
        yield f"in all sources together, {len(implications)} words imply others; the limit is {MAX_IMPLYING_WORDS}"
    lavish = [shown_value(word) for word, implied in implications.items() if len(implied) > MAX_IMPLIED_WORDS]
    if lavish:
        yield f"more than {MAX_IMPLIED_WORDS} words are implied by {listed(lavish, _SHOWN)}"


def _cycles(implications: Mapping[str, Sequence[str]]) -> Iterator[str]:
    cycle = find_cycle(implications)
    if cycle:
        yield f"capability implications form a cycle: {' -> '.join(cycle)}"


def _far_reaching(closure: Mapping[str, Sequence[str]]) -> Iterator[str]:
    words = [shown_value(word) for word, reached in sorted(closure.items()) if len(reached) > MAX_REACHED_WORDS]
    if words:
        yield f"more than {MAX_REACHED_WORDS} words are implied, over several steps, by {listed(words, _SHOWN)}"
