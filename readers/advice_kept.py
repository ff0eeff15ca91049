"""The estimates and recommendations that a registry keeps, as long as what they rest on is unchanged."""

from __future__ import annotations

from typing import Any, Final

from dspy_registry.readers.routing import Recommendation
from dspy_registry.registry_store.revision import RETIRED, private_words

_MOST_KEPT: Final = 8192


class AdviceKept:
    """What was advised while the shared words are `words`, by arguments. When full, another one takes its place."""

    __slots__ = ("estimates", "recommendations", "words")

    def __init__(self, word: float = RETIRED, usage_word: float = RETIRED) -> None:
        self.words = private_words(word, usage_word)
        self.estimates: dict[Any, int] = {}
        self.recommendations: dict[Any, Recommendation] = {}

    @property
    def is_full(self) -> bool:
        """Whether it holds as much as it may."""
        return len(self.estimates) + len(self.recommendations) >= _MOST_KEPT


NOTHING_ADVISED: Final = AdviceKept()
