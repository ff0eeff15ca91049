"""The routed call that is under way in a context, so that a callback reports no call that the router reports too."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Final

from msgspec import Struct


class CallUnderWay(Struct, eq=False):
    """An attempt. A callback that sees the target begin claims it, and tells what it used in place of reporting it.

    `cost_usd` None: not known.
    """

    name: str
    target: Any
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float | None = None
    _is_claimed: bool = False

    def claim(self, instance: Any, names: Sequence[str]) -> bool:
        """Whether the call of `instance`, known by these names, is this attempt. At most one call is."""
        if self._is_claimed or not (instance is self.target or self.name in names):
            return False
        self._is_claimed = True
        return True


under_way: Final[ContextVar[CallUnderWay | None]] = ContextVar("dspy_registry_call", default=None)
