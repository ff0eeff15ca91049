"""What a DSPy program has that neither its code nor its state gives: it would be lost if it were published."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, Final

from dspy_registry.readers.program_state import json_problems
from dspy_registry.registry_store.program_document import encode_json

_LEARNED: Final = frozenset(("traces", "train", "demos", "signature", "fields", "lm", "stage", "history", "callbacks"))
"""Attributes of a predictor that its state holds, or that differ in each object and mean nothing."""

_DUMPED: Final = ("traces", "train", "demos")
"""Lists of a predictor that its state holds whole, and a state is plain data: no module is in them."""


def unsaved(program: Any, fresh: Any) -> Iterator[str]:
    """What of a program would be lost. `fresh` is one as its code makes it. Their states are plain data."""
    built = dict(_sub_modules(fresh))
    for name, module in _sub_modules(program):
        path = name.removeprefix("self").lstrip(".") or "the program"
        if callable(vars(module).get("forward")):
            yield f"{path}: its forward was replaced, as KNNFewShot does, and a state cannot hold that"
        if module is not program and getattr(module, "_compiled", False):
            yield f"{path}: is frozen (_compiled), so DSPy leaves it out of the state"
        if name in built:
            yield from _other_settings(path, vars(module), vars(built[name]))


def _sub_modules(program: Any) -> Iterator[tuple[str, Any]]:
    """What `program.named_sub_modules` gives, which also looks for modules in each demonstration: there is none."""
    import dspy

    waiting, seen = deque([("self", program)]), {id(program)}
    while waiting:
        name, found = waiting.popleft()
        if isinstance(found, dspy.Module):
            yield name, found
        for place, held in _held_by(found):
            if isinstance(held, dspy.Module | list | tuple | dict) and id(held) not in seen:
                seen.add(id(held))
                waiting.append((f"{name}{place}", held))


def _held_by(found: Any) -> Iterator[tuple[str, Any]]:
    """What a module, a list or a dict holds, each with its place in it; of a predictor not what its state holds."""
    import dspy

    if isinstance(found, dspy.Module):
        in_state = _DUMPED if getattr(type(found), "dump_state", None) is dspy.Predict.dump_state else ()
        yield from ((f".{key}", held) for key, held in vars(found).items() if key not in in_state)
    elif isinstance(found, dict):
        yield from ((f"[{key}]", held) for key, held in found.items())
    else:
        yield from ((f"[{index}]", held) for index, held in enumerate(found))


def _other_settings(path: str, held: Mapping[str, Any], built: Mapping[str, Any]) -> Iterator[str]:
    for key, value in held.items():
        if key in _LEARNED or key.startswith("_") or any(json_problems(value, key)):
            continue
        if key not in built:
            yield f"{path}: {key} was set after it was made, and is not in the state"
        elif not any(json_problems(built[key], key)) and encode_json(built[key]) != encode_json(value):
            yield f"{path}: {key} is {value!r}, its code makes {built[key]!r}, and it is not in the state"
