"""The routed call that is under way in a context, so that a callback reports no call that the router reports too."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final


class CallUnderWay:
    """An attempt. A callback that sees the target begin claims it, and tells what it used in place of reporting it.

    `cost_usd` None: not known.
    """

    __slots__ = ("_is_claimed", "cost_usd", "name", "target", "tokens_in", "tokens_out")

    def __init__(self, name: str, target: Any) -> None:
        self.name = name
        self.target = target
        self._is_claimed = False
        self.tokens_in = 0
        self.tokens_out = 0
        self.cost_usd: float | None = None

    def claim(self, instance: Any, names: Sequence[str]) -> bool:
        """Whether the call of `instance`, known by these names, is this attempt. At most one call is."""
        if self._is_claimed or not (instance is self.target or self.name in names):
            return False
        self._is_claimed = True
        return True


under_way: Final[ContextVar[CallUnderWay | None]] = ContextVar("dspy_registry_call", default=None)
