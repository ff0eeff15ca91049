"""How long an input is, in characters, whatever it is made of, in bounded time and without importing what made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

from dspy_registry.registry_store.usage import LARGE_INPUT

_MOST_LOOKED_AT: Final = 20_000
_SAMPLE: Final = 1_000
"""Items of one container that are looked at. The others count as these do on average."""

_LENGTHS: Final[tuple[tuple[type, Callable[[Any], int]], ...]] = (
    (str, str.__len__),
    (bytes, bytes.__len__),
    (bytearray, bytearray.__len__),
)
"""The length of a text, by its type: a subclass may define its length in any way."""
_WITHOUT_TEXT: Final = (bool, int, float, complex, type(None), type)


def input_characters(value: Any) -> int | None:
    """Characters of all texts in a value, nested ones included. None: it cannot be measured. Never raises.

    Looks into mappings, sequences, sets, dataclasses, pydantic models (so `dspy.History`) and `dspy.Example`. Numbers,
    functions and other callables have no text. A container that holds itself, and an object of any other kind, cannot
    be measured. An input of which a part cannot be measured counts by the rest when that alone is more than normal.
    """
    try:
        if type(value) is dict and len(value) <= _SAMPLE:  # the usual arguments: a few texts
            for each in value.values():
                if type(each) is not str:
                    break
            else:
                return sum(map(len, value.values()))
        return _measured(value)
    except Exception:  # values are objects of the program, and any operation on them may raise anything
        return None


def _measured(value: Any) -> int | None:
    total, is_whole = 0.0, True
    around: set[int] = set()
    ahead: list[tuple[Any, float]] = [(value, 1.0)]
    for _ in range(_MOST_LOOKED_AT):
        if not ahead:
            break
        each, weight = ahead.pop()
        if type(each) is _Leave:
            around.discard(each.container)
            continue
        length = _length(each)
        if length is not None:
            total += length * weight
            continue
        parts = None if id(each) in around else _parts(each)
        if parts is None:
            is_whole = False
            continue
        around.add(id(each))
        ahead.append((_Leave(id(each)), 0.0))
        ahead += _sample(parts, weight)
    is_whole = is_whole and not ahead
    return round(total) if is_whole or total > LARGE_INPUT else None


class _Leave:
    """Stands behind the parts of a container: when it is reached, the container has been looked through."""

    __slots__ = ("container",)

    def __init__(self, container: int) -> None:
        self.container = container


def _length(value: Any) -> int | None:
    """The length of a text; 0 for what has none; None for what may have parts."""
    kind = type(value)
    for known, length in _LENGTHS:
        if issubclass(kind, known):
            return length(value)
    return 0 if issubclass(kind, _WITHOUT_TEXT) or callable(value) else None


def _parts(value: Any) -> tuple[Iterable[Any], int] | None:
    """What a container holds, and how many there are; keys are names, not text. None: this is no known container."""
    kind = type(value)
    if issubclass(kind, dict):
        return dict.values(value), dict.__len__(value)
    if issubclass(kind, list | tuple | set | frozenset):
        return value, len(value)
    if hasattr(kind, "toDict") and isinstance(getattr(value, "_store", None), dict):  # dspy.Example
        return _fields(value._store)
    if hasattr(kind, "model_fields"):  # pydantic
        return _fields({**vars(value), **(getattr(value, "__pydantic_extra__", None) or {})})
    if dataclasses.is_dataclass(kind):
        return _fields({field.name: getattr(value, field.name) for field in dataclasses.fields(kind)})
    if isinstance(value, Mapping):
        return value.values(), len(value)
    return None


def _fields(named: dict[str, Any]) -> tuple[Iterable[Any], int]:
    return named.values(), len(named)


def _sample(parts: tuple[Iterable[Any], int], weight: float) -> list[tuple[Any, float]]:
    """Parts to look at, each with how many it stands for; those of a list are spread over its length."""
    items, count = parts
    if isinstance(items, list | tuple) and count > _SAMPLE:
        found = list(items[:: -(-count // _SAMPLE)])
    else:
        found = list(islice(iter(items), _SAMPLE))
    each = weight * count / len(found) if found else 0.0
    return [(item, each) for item in found]
