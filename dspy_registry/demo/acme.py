"""The demo's DSPy program, with the one line that reports what its modules do.

A copy runs in another folder as `acme`, so that its module has the name it would have in your project.
"""

from __future__ import annotations

import json
import random
import sys
import time
from typing import Any, Final

import dspy
from dspy.utils import DummyLM

from dspy_registry.integrations.dspy import RegistryCallback

ARTICLES: Final = 64
EMPTY_EVERY: Final = 16
CHARACTERS: Final = 400  # of an article: all inputs have the same size class, `normal`
SECONDS: Final = (0.004, 0.03)  # fewest and most that the language model takes
SECONDS_TO_DELIVER: Final = 10.0


class PacedLM(DummyLM):  # type: ignore[misc]
    """A language model that needs no network, and takes as long as one that does."""

    def __init__(self) -> None:
        super().__init__({"": {"reasoning": "It is about one thing.", "digest": "One thing."}})
        self._random = random.Random(3)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(self._random.uniform(*SECONDS))
        return super().__call__(*args, **kwargs)


class Digest(dspy.Module):  # type: ignore[misc]
    """An article in one sentence. Raises ValueError for an empty article."""

    def __init__(self) -> None:
        super().__init__()
        self.think = dspy.ChainOfThought("article -> digest")

    def forward(self, article: str) -> Any:
        """The prediction, with a `digest`."""
        if not article.strip():
            raise ValueError("the article is empty")
        return self.think(article=article)


def main(path: str) -> None:
    """Digest articles; once the daemon has the statistics, print the number of calls and errors."""
    callback = RegistryCallback(path)
    dspy.configure(lm=PacedLM(), callbacks=[callback])
    digest = Digest()
    errors = 0
    for number in range(1, ARTICLES + 1):
        try:
            digest(article=" " if number % EMPTY_EVERY == 0 else "word " * (CHARACTERS // 5))
        except ValueError:
            errors += 1
    if not callback.reporter.close(SECONDS_TO_DELIVER):
        sys.exit("the daemon did not take the statistics")
    print(json.dumps({"calls": ARTICLES, "errors": errors, "characters": CHARACTERS}))
