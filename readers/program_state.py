"""Whether the state of a DSPy program is plain data, and is the same after it was loaded: what is not, by name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final

from dspy_registry.registry_store.program_document import MAX_DEPTH, encode_json

_UNSAFE_LM_KEYS: Final = ("api_base", "base_url", "model_list")
_EXACT: Final = (str, int, bool)
"""Types whose equal values have equal JSON: 0.0 equals -0.0."""
_PLAIN: Final = (str, int, bool, float, type(None))
_DICTS: Final = frozenset((dict,))
_TEXTS: Final = frozenset((str,))


def state_problems(state: dict[str, Any]) -> Iterator[str]:
    """What a state holds that JSON cannot give back, or that DSPy would not load."""
    for name, held in state.items():
        yield from json_problems(held, name)
    yield from unloaded(state)


def unloaded(state: dict[str, Any]) -> Iterator[str]:
    """What a state holds that DSPy would not load. This is all that can be wrong with one that came from JSON."""
    for name, held in state.items():
        if isinstance(held, dict):
            lm = held.get("lm")
            unsafe = [key for key in _UNSAFE_LM_KEYS if isinstance(lm, dict) and key in lm]
            if unsafe:
                yield f"{name}: its language model has {', '.join(unsafe)}, which DSPy does not load from a state"
            if held.get("module_src") is not None:
                yield f"{name}: its state is source code, which is never loaded"


def json_problems(value: Any, where: str, depth: int = 0) -> Iterator[str]:
    """What in a value is not JSON, each with its place."""
    if depth > MAX_DEPTH:
        yield f"{where}: nests deeper than {MAX_DEPTH}"
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                yield f"{where}: the key {key!r} is no text"
            elif not _is_plain_text(item):
                yield from json_problems(item, f"{where}.{key}", depth + 1)
    elif type(value) is list:
        if depth == MAX_DEPTH or not _are_dicts_of_plain_text(value):
            yield from _list_problems(value, where, depth)
    else:
        problem = _scalar_problem(value)
        if problem:
            yield f"{where}: {problem}"


def _list_problems(values: list[Any], where: str, depth: int) -> Iterator[str]:
    for index, item in enumerate(values):
        if not _is_plain_text(item):
            yield from json_problems(item, f"{where}[{index}]", depth + 1)


def _is_plain_text(value: Any) -> bool:
    """Nothing is wrong with it. Most of a state is such text, and looking for more takes three times as long."""
    return type(value) is str and value.isascii()


def _are_dicts_of_plain_text(values: list[Any]) -> bool:
    """Nothing is wrong with them. Most of a state is such demonstrations; one by one takes ten times as long."""
    if not _DICTS.issuperset(map(type, values)):
        return False
    texts = [*chain.from_iterable(values), *chain.from_iterable(map(dict.values, values))]
    return _TEXTS.issuperset(map(type, texts)) and all(map(str.isascii, texts))


def _scalar_problem(value: Any) -> str:
    if type(value) not in _PLAIN:
        return f"is a {type(value).__name__}, which JSON cannot give back"
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}, which JSON cannot hold"
    if type(value) is int and not -(2**63) <= value < 2**64:
        return "is an integer of more than 64 bits"
    return "is no valid Unicode" if isinstance(value, str) and not _encodes(value) else ""


def lost_in(published: dict[str, Any], loaded: dict[str, Any]) -> Iterator[str]:
    """What of a published state is not the same in the program that it was loaded into."""
    for name, held in published.items():
        now = loaded.get(name)
        if isinstance(held, dict) and isinstance(now, dict):
            for key, value in held.items():
                if key not in now or not _has_same_json(now[key], value):
                    yield f"{name}.{key}: is not what was published once DSPy has loaded it"
        elif encode_json(now) != encode_json(held):
            yield f"{name}: is not what was published once DSPy has loaded it"


def _has_same_json(one: Any, other: Any) -> bool:
    return is_same(one, other) or encode_json(one) == encode_json(other)


def is_same(one: Any, other: Any) -> bool:
    """Whether two values have the same JSON. False: it is not certain. Encoding both takes several times as long."""
    if one is other:
        return True
    kind = type(one)
    if kind is not type(other):
        return False
    if kind is dict:
        return len(one) == len(other) and _has_same_items(one, other)
    if kind is list:
        return len(one) == len(other) and all(map(is_same, one, other))
    return kind in _EXACT and bool(one == other)


def _has_same_items(one: dict[str, Any], other: dict[str, Any]) -> bool:
    for key, value in one.items():
        if key not in other:
            return False
        now = other[key]
        if value is not now and not is_same(value, now):  # most are the very same text
            return False
    return True


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
