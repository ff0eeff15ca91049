"""Reads in flight: those of a few instructions, outside any gate. A fork waits until there are none.

A thread is in flight while one of its frames is of a function that reads so. The frames tell it exactly, and they cost
the read nothing. An exception that a signal's handler raises leaves none behind.
"""

from __future__ import annotations

import sys
import threading
import time
from types import CodeType, FrameType
from typing import Final

_TRIES: Final = 2000
_PAUSE: Final = 0.0005  # seconds

short_reads: Final[set[CodeType]] = set()
"""The functions that read in flight. They call nothing that may wait."""


def has_landed() -> bool:
    """Wait for the reads in flight, which end within microseconds of being scheduled. No new one may begin.

    False: one does not end. It is the forking thread's own, and a signal's handler that forks has interrupted it.
    """
    for _ in range(_TRIES):
        threads = _threads_in_flight()
        if not threads:
            return True
        if threading.get_ident() in threads:
            return False
        time.sleep(_PAUSE)
    return False


def _threads_in_flight() -> set[int]:
    return {thread for thread, frame in sys._current_frames().items() if _is_in_flight(frame)}


def _is_in_flight(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in short_reads:
            return True
        frame = frame.f_back
    return False
