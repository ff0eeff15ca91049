"""Where processes hang: each tells, before it is killed, where its threads are. So do those that it forked."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_ASKED: Final = signal.SIGUSR1
_TO_WRITE: Final = 0.5  # seconds


def tell_when_asked() -> None:
    """Let this process, and those that it forks, write to stderr where they are when they are asked."""
    faulthandler.register(_ASKED, file=2, all_threads=True)


def end_though_threads_go_on() -> None:
    """Call it where an error is handled that ends the program: its other threads may wait for what never comes."""
    if any(each is not threading.current_thread() and not each.daemon for each in threading.enumerate()):
        traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def ask_and_kill(pid: int) -> None:
    """Have a process that hangs, and its descendants, tell where they are. Then end them all."""
    hanging = [pid, *_descendants(pid)]
    for each in hanging:
        with suppress(OSError):
            if _tells(each):
                os.kill(each, _ASKED)
                time.sleep(_TO_WRITE)  # one after the other: they may share stderr
    for each in hanging:
        with suppress(OSError):
            os.kill(each, signal.SIGKILL)


def _tells(pid: int) -> bool:
    """Whether the process handles the signal: it ends any other."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) >> (_ASKED - 1) & 1)


def _descendants(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            for child in map(int, children.read_text().split()):
                yield child
                yield from _descendants(child)
