"""What DSPy does not show to callbacks, told once in the log instead of being left out in silence."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from types import CodeType, FrameType
from typing import Any, Final

import dspy
from dspy.utils import callback as dspy_callback

_CALLS: Final = ("__call__", "acall")
_FRAMES_SEARCHED: Final = 8
_MOST_CODES: Final = 4096

_log = logging.getLogger("dspy_registry")


class Unseen:
    """Looks, at the beginning of a module's call, for calls around it that DSPy did not show. Each is told once."""

    def __init__(self, *machinery: str) -> None:
        self._machinery = {__file__, dspy_callback.__file__, *machinery}
        self._looked_at: set[CodeType] = set()
        self._has_told_of_threads = False

    def look(self, instance: Any, has_parent: bool, running: Callable[[], Iterable[Any]]) -> None:
        """A call of `instance` begins; `has_parent`: inside another. `running` gives instances of calls under way."""
        self._look_for_override(instance)
        if not has_parent and not self._has_told_of_threads:
            self._look_for_thread(instance, running)

    def _look_for_override(self, instance: Any) -> None:
        """A method `__call__` that replaces DSPy's stands on the stack, between this call and the next one shown."""
        frame = self._caller()
        for _ in range(_FRAMES_SEARCHED):
            if frame is None or frame.f_code.co_filename == dspy_callback.__file__:
                return
            code = frame.f_code
            if code.co_name in _CALLS and code not in self._looked_at and len(self._looked_at) < _MOST_CODES:
                self._judge(frame, instance)
            frame = frame.f_back

    def _caller(self) -> FrameType | None:
        """Who called the module: the first frame that is neither ours nor of DSPy's callbacks."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename in self._machinery:
            frame = frame.f_back
        return frame

    def _judge(self, frame: FrameType, instance: Any) -> None:
        code = frame.f_code
        owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        if owner is instance:  # it goes on to DSPy's own method, which is shown
            return
        self._looked_at.add(code)
        method = getattr(type(owner), code.co_name, None)
        if isinstance(owner, dspy.Module) and getattr(method, "__code__", None) is code:
            _log.warning(
                "calls of %s.%s are not counted: its own %s keeps DSPy from showing them to callbacks. Name it forward "
                "(aforward), or decorate the class with dspy_registry.integrations.dspy.module().",
                type(owner).__module__,
                type(owner).__qualname__,
                code.co_name,
            )

    def _look_for_thread(self, instance: Any, running: Callable[[], Iterable[Any]]) -> None:
        """A part of a module whose call is under way is called in a thread that does not know of that call."""
        if threading.current_thread() is threading.main_thread():
            return
        for other in running():
            if other is not instance and any(part is instance for part in vars(other).values()):
                self._has_told_of_threads = True
                _log.warning(
                    "what %s uses in threads of its own does not count towards it: a plain thread does not know the "
                    "call that started it. Use dspy.Parallel, or start each with contextvars.copy_context().run.",
                    f"{type(other).__module__}.{type(other).__qualname__}",
                )
                return
