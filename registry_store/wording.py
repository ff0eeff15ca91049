"""How messages show values and list things."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Final

_LONGEST: Final = 80
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = _LONGEST


def first_of(items: Sequence[str], shown: int) -> list[str]:
    """The first `shown` items, then "and N more" if there are more. A copy."""
    more = len(items) - shown
    return [*items[:shown], f"and {more} more"] if more > 0 else list(items)


def listed(items: Sequence[str], shown: int, separator: str = ", ") -> str:
    """The first `shown` items in one text, as in "a, b and 3 more"."""
    more = len(items) - shown
    text = separator.join(items[:shown])
    return f"{text} and {more} more" if more > 0 else text


def counted(count: int, noun: str, several: str = "") -> str:
    """A number of things: "1 file", "2,000 files". `several` is the plural of a noun that takes no s."""
    return f"{count:,} {noun if count == 1 else several or f'{noun}s'}"


def shown_value(value: object) -> str:
    """A short text of a refused value, made without recursion: the value may have any size and depth."""
    try:
        text = _repr.repr(value)
    except Exception:  # an int of very many digits, among others
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
