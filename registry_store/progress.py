"""How far long work is, as whoever waits for it is told."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with how much is done and how much there is; often, so it must be quick."""
