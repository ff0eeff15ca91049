"""Numbers in an address, as forms and programs write them. pydantic's own take underscores, blanks and "inf" too."""

from __future__ import annotations

from typing import Any, Final

from pydantic import BeforeValidator

from dspy_registry.registry_store.number_text import NUMBER_EXPECTED, WHOLE_EXPECTED, number, whole_number


def _whole(value: Any) -> Any:
    return _plain(value, whole_number(value), WHOLE_EXPECTED) if isinstance(value, str) else value


def _number(value: Any) -> Any:
    return _plain(value, number(value), NUMBER_EXPECTED) if isinstance(value, str) else value


def _plain(text: str, found: float | None, expected: str) -> float:
    if found is None:
        raise ValueError(f"{text[:40]!r} is not that: {expected}")
    return found


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


WHOLE: Final = BeforeValidator(_whole)
"""A whole number in plain digits."""
NUMBER: Final = BeforeValidator(_number)
"""A finite number in plain digits."""
EMPTY_IS_NONE: Final = BeforeValidator(_none_if_empty)
"""What a form sends for an empty field is None. Put it after the others: the last of them runs first."""
