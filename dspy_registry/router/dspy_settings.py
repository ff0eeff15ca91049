"""What a routed call takes from and gives to DSPy, where the program uses it. This imports no DSPy.

DSPy puts a language model's `timeout` into the key of its cache, and keeps one pool of connections for each value. So a
model with the cache on keeps its own timeout, and others get one of a few steps, which is at least the time left.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from dspy_registry.router.under_way import CallUnderWay, under_way

_STEPS: Final = tuple(2.0**power for power in range(-2, 10))
"""Seconds, a quarter of one to 512."""


def timeout_step(seconds: float) -> float:
    """The smallest step that is at least this long."""
    return next((step for step in _STEPS if step >= seconds), _STEPS[-1])


def is_streaming() -> bool:
    """Whether DSPy streams the answer: it then sends from the very thread that called the program."""
    if "dspy" not in sys.modules:
        return False
    settings = _settings()
    return settings is not None and settings.get("send_stream") is not None


def within_time(seconds: float, call: CallUnderWay, arguments: Mapping[str, Any]) -> Any:
    """Make the call, which is then under way in this context.

    The language model in force gets the time left as its timeout, where DSPy lets it.
    """
    under_way.set(call)
    limited = limited_lm(seconds) if "dspy" in sys.modules else None
    if limited is None:
        return call.target(**arguments)
    with sys.modules["dspy"].context(lm=limited):
        return call.target(**arguments)


async def within_time_async(
    seconds: float, call: CallUnderWay, awaited: Callable[..., Any], arguments: Mapping[str, Any]
) -> Any:
    """`within_time` for a target that is awaited: `awaited` of it is called."""
    under_way.set(call)
    limited = limited_lm(seconds)
    if limited is None:
        return await awaited(**arguments)
    with sys.modules["dspy"].context(lm=limited):
        return await awaited(**arguments)


def limited_lm(seconds: float) -> Any:
    """A copy of the language model in force with a timeout; None: it keeps its own."""
    settings = _settings()
    lm = None if settings is None else settings.get("lm")
    if lm is None or getattr(lm, "cache", True) or not isinstance(getattr(lm, "_engine_spec", None), str):
        return None
    step = timeout_step(seconds)
    given = lm.kwargs.get("timeout")
    if given is not None and not (isinstance(given, (int, float)) and given > step):
        return None
    return lm.copy(timeout=step)


def _settings() -> Any:
    return getattr(sys.modules.get("dspy"), "settings", None)
