"""The capabilities nearest to a wanted one that no module has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Final

from dspy_registry.readers.asked import Asked
from dspy_registry.registry_store.arguments import words_of
from dspy_registry.registry_store.errors import NoCandidateError
from dspy_registry.registry_store.handles import Databases, Transaction
from dspy_registry.registry_store.postings import words_in_use

_MOST_COMPARED: Final = 10_000
_ANY: Final = 7  # the place of `any_capabilities` among the conditions

WordsInUse = Callable[[str], Iterator[str]]
"""The capabilities that modules have and that begin so, in alphabetical order."""


def near_capabilities(asked: Iterable[str], in_use: WordsInUse) -> list[str]:
    """A sentence for each of these that no module has, with the nearest ones that some module has."""
    missing = [word for word in dict.fromkeys(asked) if next(in_use(word), None) != word]
    if not missing:
        return []
    from difflib import get_close_matches  # readers seldom need it

    known = list(islice(in_use(""), _MOST_COMPARED))
    close = {word: get_close_matches(word, known, n=3) for word in missing}
    return [
        f"no module has the capability {word!r}." + (f" Did you mean {', '.join(near)}?" if near else "")
        for word, near in close.items()
    ]


def tell_near_capabilities(txn: Transaction, dbs: Databases, error: NoCandidateError, asked: Asked) -> None:
    """Let the error's remedy tell which wanted capabilities no module has, if there are such."""
    if asked.conditions is None:
        return
    wanted = (*words_of("a capability", asked.conditions[0]), *words_of("a capability", asked.conditions[_ANY]))
    told = near_capabilities(wanted, partial(words_in_use, txn, dbs, "capability"))
    if told:
        error.remedy = " ".join(f"N{each[1:]}" for each in told)
