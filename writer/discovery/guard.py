"""The process around a probe: what packages start does not outlive it. Runs in the workers' interpreter.

So it uses only the standard library, of Python 3.9 or newer. It forks the probe before anything is imported, and adopts
every orphan among its descendants (PR_SET_CHILD_SUBREAPER), whatever session it is in. When the probe ends, or its
standard input does because nobody waits any longer, it kills them all.
"""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36

POLL_SECONDS = 0.01
KILL_SECONDS = 2.0


def guarded(work: Callable[[], None]) -> None:
    """Do `work` in a fork, and end as it ended. Does not return."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # while it is ignored, exit codes of forks are lost
    worker = os.fork()
    if worker == 0:
        _work(work)
    status = _wait(worker)
    _kill_descendants()
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)


def prctl(option: int, value: int) -> None:
    """Where there is no such call, descendants in a session of their own are not found."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _work(work: Callable[[], None]) -> None:
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        work()
        os._exit(0)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        os._exit(1)


def _wait(worker: int) -> int:
    """The worker's status. It is killed at the end of standard input."""
    is_wanted = True
    while True:
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            return status
        if not is_wanted:
            time.sleep(POLL_SECONDS)
        elif select.select([0], [], [], POLL_SECONDS)[0] and not os.read(0, 1):
            is_wanted = False
            os.kill(worker, signal.SIGKILL)


def _kill_descendants() -> None:
    """Kill the children, then those that they leave behind, until none is left."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        for child in _children():
            with contextlib.suppress(OSError):
                os.kill(child, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def _children() -> list[int]:
    own, found = str(os.getpid()), []
    for entry in os.listdir("/proc") if os.path.isdir("/proc") else ():  # noqa: PTH112, PTH208  # a string is enough
        if entry.isdigit():
            with contextlib.suppress(OSError):
                stat = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace")
                if stat.rpartition(")")[2].split()[1] == own:
                    found.append(int(entry))
    return found
