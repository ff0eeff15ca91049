"""Reads in flight: those of a few instructions, outside any gate. A fork waits until there are none.

A thread is in flight while one of its frames is of a function that begins such a read and ends it. The frames tell it
exactly, and they cost the read nothing. An exception that a signal's handler raises leaves none behind.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Final

_PATIENCE: Final = 1.0  # seconds
_PAUSE: Final = 0.0005

short_reads: Final[set[CodeType]] = set()
"""The functions that read in flight. Each has a parameter `environment`, and does nothing but read."""


def environments_in_flight() -> list[Any]:
    """Wait for the reads in flight, which end within microseconds of being scheduled. No new one may begin.

    Returns the environments whose reads do not end. Mostly there are none. A signal's handler that forks may have
    interrupted a read of the forking thread, or a handler of another thread may wait for the fork.
    """
    until = time.monotonic() + _PATIENCE
    while True:
        found = {thread: list(_read_by(frame)) for thread, frame in sys._current_frames().items()}
        own = found.pop(threading.get_ident(), [])
        others = [environment for environments in found.values() for environment in environments]
        if not others or time.monotonic() > until:
            return own + others
        time.sleep(_PAUSE)


def _read_by(frame: FrameType | None) -> Iterator[Any]:
    while frame is not None:
        if frame.f_code in short_reads:
            yield frame.f_locals["environment"]
        frame = frame.f_back
