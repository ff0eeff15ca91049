"""A quick look at values from outside: are all plain, that is stored and read back equal, and how many are they?

It names nothing. `validation` says what is wrong, in several times the time. A record of as many values as are allowed
must keep the writer busy for a moment only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from math import isfinite
from typing import Any, Final

from dspy_registry.registry_store.layout import MAX_METADATA_DEPTH

SMALLEST_INT: Final = -(2**63)  # this and the next: what msgpack can hold
LARGEST_INT: Final = 2**64 - 1

_MANY: Final = 16  # values for which looking at all of one type at once is worth it


def is_plain_text(text: object) -> bool:
    """Whether this is a text that can be written. One of a subclass may not encode as it is shown."""
    return type(text) is str and (text.isascii() or is_utf8(text))


def is_utf8(text: str) -> bool:
    """Whether a text can be written: a half of a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_plain_scalar(value: object) -> bool:
    kind = type(value)
    if kind is int:
        return SMALLEST_INT <= value <= LARGEST_INT  # type: ignore[operator]
    if kind is float:
        return isfinite(value)  # type: ignore[arg-type]
    return value is None or kind is bool or is_plain_text(value)


def plain_size(mapping: object, most: int) -> int:
    """How many values a mapping holds. Above `most`: there are more, or something in it is not plain."""
    if type(mapping) is not dict:
        return most + 1
    if not mapping:
        return 0
    size = 0
    pending: list[tuple[Any, int]] = [(mapping, 1)]
    while pending:
        item, depth = pending.pop()
        size += len(item)
        if size > most or depth > MAX_METADATA_DEPTH or (type(item) is dict and not _are_plain_texts(item)):
            return most + 1
        children: Collection[Any] = item.values() if type(item) is dict else item
        if len(children) > _MANY:
            found = _holders_among(children)
            if found is None or (found and depth == MAX_METADATA_DEPTH):
                return most + 1
            children = list(filter(None, found))
        for child in children:
            kind = type(child)
            if kind is dict or kind is list:
                pending.append((child, depth + 1))
            elif not (kind is str and child.isascii()) and not _is_plain_scalar(child):
                return most + 1
    return size


def _holders_among(values: Collection[Any]) -> Collection[Any] | None:
    """The mappings and lists among many values. None: one of them is not plain, apart from what those hold.

    It looks at all of one type at once, which takes a fraction of the time.
    """
    kinds = set(map(type, values))
    if not kinds <= _PLAIN:
        return None
    for kind, check in _CHECKS.items():
        if kind in kinds and not check([value for value in values if type(value) is kind]):
            return None
    if kinds.isdisjoint(_HOLDERS):
        return ()
    if kinds <= _HOLDERS:
        return values
    return [value for value in values if type(value) in _HOLDERS]


def _are_plain_texts(values: Collection[Any]) -> bool:
    if len(values) <= _MANY:
        for value in values:  # noqa: SIM110 - a third of the time of `all`, in every registration
            if type(value) is not str or not (value.isascii() or is_utf8(value)):
                return False
        return True
    return set(map(type, values)) <= _TEXT and _are_writable(values)


def _are_writable(texts: Iterable[str]) -> bool:
    return all(map(str.isascii, texts)) or all(map(is_utf8, texts))


_TEXT: Final = frozenset((str,))
_HOLDERS: Final = frozenset((dict, list))
_CHECKS: Final[Mapping[type, Callable[[list[Any]], bool]]] = {
    str: _are_writable,
    int: lambda values: bool(min(values) >= SMALLEST_INT and max(values) <= LARGEST_INT),
    float: lambda values: all(map(isfinite, values)),
}
_PLAIN: Final = frozenset((*_HOLDERS, *_CHECKS, bool, type(None)))
