"""What a page's address asks for: the conditions of `find`, a text in the name, a page. Pure."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import Query
from pydantic import BaseModel, Field

from dspy_registry.explorer.number_fields import WHOLE

PAGE: Final = 50
"""Modules on one page."""
LONGEST_WORD: Final = 300
_MOST_WORDS: Final = 64
_LONGEST_LIST: Final = 8_000
"""Characters of one value that holds several words: a name alone may have 255 bytes."""

Level = Literal["", "low", "medium", "high", "very_high"]
Choice = Literal["", "yes", "no"]
Word = Annotated[str, Field(max_length=LONGEST_WORD)]
Words = Annotated[list[Annotated[str, Field(max_length=_LONGEST_LIST)]], Field(max_length=_MOST_WORDS)]
_CHOICES: Final = {"yes": True, "no": False}


class Conditions(BaseModel):
    """The conditions of `Registry.find`, as an address has them. An empty one is left out, as a form sends it.

    Several words of one field may be given as several values, or in one with commas or blanks between them.
    """

    capabilities: Words = Field(default=[], description="Has all of these, directly or implied.")
    any_capabilities: Words = Field(default=[], description="Has at least one of these.")
    without_capabilities: Words = Field(default=[], description="Has none of these.")
    category: Word = ""
    pool_type: Word = ""
    native: Choice = ""
    gpu: Choice = ""
    max_memory: Level = Field(default="", description="Needs at most this much memory.")
    max_compute: Level = Field(default="", description="Needs at most this much compute.")

    def arguments(self) -> dict[str, Any]:
        """The arguments of `find`; only those that were given."""
        found: dict[str, Any] = {}
        for field in ("capabilities", "any_capabilities", "without_capabilities"):
            if words := split(getattr(self, field)):
                found[field] = words
        for field in ("category", "pool_type", "max_memory", "max_compute"):
            if value := getattr(self, field).strip():
                found[field] = value
        for field in ("native", "gpu"):
            if (choice := _CHOICES.get(getattr(self, field))) is not None:
                found[field] = choice
        return found


class Asked(Conditions):
    """A page of modules: conditions, a part of the name, and which page."""

    q: Word = Field(default="", description="A part of the name; case does not matter.")
    page: Annotated[int, WHOLE] = Field(default=1, ge=1, le=1_000_000, description=f"{PAGE} modules each, from 1.")


def split(values: list[str]) -> tuple[str, ...]:
    """Single words, each once, in the order given."""
    return tuple(dict.fromkeys(word for value in values for word in value.replace(",", " ").split()))


AskedQuery = Annotated[Asked, Query()]


def command(arguments: dict[str, Any]) -> list[str]:
    """The options of `dspy-registry find` and `route` that ask for the same."""
    options = {
        "capabilities": "--capability",
        "any_capabilities": "--any-capability",
        "without_capabilities": "--without-capability",
        "category": "--category",
        "pool_type": "--pool",
        "max_memory": "--max-memory",
        "max_compute": "--max-compute",
    }
    words: list[str] = []
    for field, value in arguments.items():
        if field in ("native", "gpu"):
            words.append(f"--{'' if value else 'no-'}{field}")
        else:
            for each in value if isinstance(value, tuple) else (value,):
                words += (options[field], each)
    return words
