"""The state of a DSPy program, as its `dump_state` gives it, in a fraction of the time.

DSPy copies each demonstration several times. One that holds nothing but plain values comes out as these values. So it
is taken as it is, and DSPy dumps the rest of its predictor. So is one that was just loaded from JSON.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from types import MappingProxyType
from typing import Any, Final

_PLAIN: Final = frozenset((str, int, bool, float, type(None)))
"""Types that DSPy dumps as they are. None of them can be changed, so two dicts may share them."""

_DICTS: Final = frozenset((dict,))
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


def dumped(program: Any, loaded: Mapping[str, Any] = _NOTHING) -> dict[str, Any]:
    """What `program.dump_state()` gives. It may share lists and dicts with the program: do not change it.

    `loaded` is the state, decoded from JSON, that was just loaded into the program; empty: none was. Raises what code
    that is not DSPy's raises.
    """
    import dspy

    if not _dumps_as(program, dspy.Module):
        state: dict[str, Any] = program.dump_state()
        return state
    return {name: _of_predictor(parameter, loaded.get(name)) for name, parameter in program.named_parameters()}


def _of_predictor(parameter: Any, loaded: Any) -> Any:
    """DSPy is given a copy with fewer demonstrations: others may be using the predictor."""
    import dspy

    demos = vars(parameter).get("demos")
    if type(parameter) is not dspy.Predict or not _dumps_as(parameter, dspy.Predict) or type(demos) is not list:
        return parameter.dump_state()
    rest = copy.copy(parameter)
    all_plain = demos if _are_loaded(demos, loaded) else _all_plain(demos, dspy.Example)
    if all_plain is not None:
        rest.demos = []
        return {**rest.dump_state(), "demos": all_plain}
    plain = [_plain(demo, dspy.Example) for demo in demos]
    rest.demos = [demo for demo, found in zip(demos, plain, strict=True) if found is None]
    state = rest.dump_state()
    others = iter(state["demos"])
    return {**state, "demos": [next(others) if found is None else found for found in plain]}


def _are_loaded(demos: list[Any], loaded: Any) -> bool:
    """Whether DSPy dumps them as they are, because they are the very dicts that came from JSON."""
    return type(loaded) is dict and demos is loaded.get("demos") and _DICTS.issuperset(map(type, demos))


def _dumps_as(module: Any, kind: Any) -> bool:
    """Whether what dumps this module is that class's function, and no other."""
    return getattr(module.dump_state, "__func__", None) is kind.dump_state


def _all_plain(demos: list[Any], example: type[Any]) -> list[Any] | None:
    """The demonstrations as dicts, if all are of one kind and hold plain values, as most in a state do; else None.

    One by one, this takes three to six times as long.
    """
    held = demos
    if {example}.issuperset(map(type, demos)):
        held = [vars(demo).get("_store") for demo in demos]  # a dict of what `items` shows
    is_plain = _DICTS.issuperset(map(type, held)) and _PLAIN.issuperset(
        map(type, chain.from_iterable(map(dict.values, held)))
    )
    return held if is_plain else None


def _plain(demo: Any, example: type[Any]) -> dict[str, Any] | None:
    """A demonstration that holds nothing but plain values, as a dict. None: DSPy is to dump it."""
    if type(demo) is example:
        demo = dict(demo.items(include_dspy=True))
    return demo if type(demo) is dict and _PLAIN.issuperset(map(type, demo.values())) else None
