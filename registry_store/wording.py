"""How messages list things."""

from __future__ import annotations

from collections.abc import Sequence


def first_of(items: Sequence[str], shown: int) -> list[str]:
    """The first `shown` items, then "and N more" if there are more. A copy."""
    more = len(items) - shown
    return [*items[:shown], f"and {more} more"] if more > 0 else list(items)


def listed(items: Sequence[str], shown: int, separator: str = ", ") -> str:
    """The first `shown` items in one text, as in "a, b and 3 more"."""
    more = len(items) - shown
    text = separator.join(items[:shown])
    return f"{text} and {more} more" if more > 0 else text
