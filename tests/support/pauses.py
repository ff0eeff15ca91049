"""One thread that stops at each line of ours in turn, while another one does something."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any


def paused_at(line: int, work: Callable[[], object], meanwhile: Callable[[], object], *files: str) -> bool:
    """Runs `work` in a thread that stops at its line with this number until `meanwhile` is over, or cannot go on.

    Lines of these files count. Returns whether there is such a line.
    """
    left, stopped, goes_on = line, threading.Event(), threading.Event()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if left == -1:
                stopped.set()
                goes_on.wait(0.1)  # `meanwhile` may need what this thread holds: then it comes after
        return trace

    def traced() -> None:
        sys.settrace(trace)
        try:
            work()
        finally:
            sys.settrace(None)
            stopped.set()

    thread = threading.Thread(target=traced)
    thread.start()
    stopped.wait()
    meanwhile()
    goes_on.set()
    thread.join()
    return left < 0
