"""KeyboardInterrupt between any two lines of ours: what a signal does in real life, at every place in turn."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

OURS = ("dspy_registry/registry_store", "readers")


def interrupted_everywhere(
    work: Callable[[], object], is_sound: Callable[[], bool], rooms: tuple[str, ...] = OURS
) -> int:
    """Runs `work` with an interrupt at its first line of these rooms, then at its second…; how many there were.

    `is_sound` must hold after each. Call it in a process of its own: finalizers are interrupted too.
    """
    sys.unraisablehook = lambda _: None
    at = 0
    while _interrupted(work, at, rooms):
        at += 1
        assert is_sound(), f"after an interrupt at line {at} of {work.__name__}"
    return at


def _interrupted(work: Callable[[], object], at: int, rooms: tuple[str, ...]) -> bool:
    left = at
    reached = False

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left, reached
        name = frame.f_code.co_filename
        if "/tests/" in name or not any(f"/{room}/" in name for room in rooms):
            return None
        if event == "line" and not reached:
            left -= 1
            if left < 0:
                reached = True
                raise KeyboardInterrupt(f"{name}:{frame.f_lineno}")
        return trace

    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return reached
