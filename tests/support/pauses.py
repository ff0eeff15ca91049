"""Something that happens at each line of ours in turn: a pause while another thread goes on, or a death."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from tests.support.forks import fork


def acting_at(line: int, act: Callable[[], object], files: tuple[str, ...]) -> Callable[[FrameType, str, Any], Any]:
    """A function for `sys.settrace` that calls `act` at the line with this number. Lines of these files count."""
    left = line

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if left == -1:
                act()
        return trace

    return trace


def paused_at(line: int, work: Callable[[], object], meanwhile: Callable[[], object], *files: str) -> bool:
    """Runs `work` in a thread that stops at its line with this number until `meanwhile` is over, or cannot go on.

    Lines of these files count. Returns whether there is such a line.
    """
    was_reached, stopped, goes_on = threading.Event(), threading.Event(), threading.Event()

    def pause() -> None:
        was_reached.set()
        stopped.set()
        goes_on.wait(0.1)  # `meanwhile` may need what this thread holds: then it comes after

    def traced() -> None:
        sys.settrace(acting_at(line, pause, files))
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
    return was_reached.is_set()


def killed_at(line: int, work: Callable[[], object], *files: str) -> bool:
    """Does some work in a forked child that kills itself at its line with this number. Lines of these files count.

    Returns whether there is such a line.
    """

    def traced() -> None:
        sys.settrace(acting_at(line, lambda: os.kill(os.getpid(), signal.SIGKILL), files))
        work()

    return os.waitstatus_to_exitcode(os.waitpid(fork(traced), 0)[1]) == -signal.SIGKILL
