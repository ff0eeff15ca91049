"""What an attempt holds while it runs: its places under limits, and the right to probe."""

from __future__ import annotations

from typing import Any

from dspy_registry.readers.registry import Registry
from dspy_registry.router.course import Refused, Try


class Admission:
    """What one attempt holds. End it when the call has ended, in whatever thread."""

    __slots__ = ("_limited", "_probe")

    def __init__(self, limited: Any = None, probe: Any = None) -> None:
        self._limited = limited
        self._probe = probe

    def end(self) -> None:
        """Give back what is held. A second call does nothing."""


def admit(registry: Registry, step: Try) -> Admission | Refused:
    """What the attempt needs. Refused: a limit is reached, or another process has the probe."""
    return Admission()


async def admit_async(registry: Registry, step: Try) -> Admission | Refused:
    """`admit`, waiting without blocking the loop."""
    return Admission()
