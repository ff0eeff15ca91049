"""What processes of one host agree on: the seconds since it booted, which boot that was, and which process is which."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_gettime, _BOOTTIME = time.clock_gettime, time.CLOCK_BOOTTIME  # looked up once: limits ask at each begin and end
_CLOCK_TRIES, _CLOCK_TOGETHER = 8, 20e-6
_START_TIME_FIELD: Final = 19  # of /proc/PID/stat, counted after the command, which may hold anything


class ProcessIdentity(NamedTuple):
    """A process, told apart from a later one with the same pid. `started` is in clock ticks since boot; 0: unknown."""

    pid: int
    started: int


def boot_seconds() -> float:
    """Seconds since the host booted, including time when it was suspended. The same in every process."""
    return _gettime(_BOOTTIME)


@cache
def boot_id() -> str:
    """The id of this boot of the host; "": unknown."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def unix_time(boot: float) -> float:
    """The Unix time of a moment on the boot-time clock. It follows the system's clock, so it may differ later."""
    return time.time() + (boot - boot_seconds())


def wall_and_monotonic() -> tuple[int, float]:
    """The Unix time in nanoseconds, and `time.monotonic()` at the same moment.

    Another thread may run between two readings, for many milliseconds under load. So the wall clock is read between two
    readings of the other clock, again until these are close, and the closest of a few tries counts.
    """
    found: tuple[float, int, float] | None = None
    for _ in range(_CLOCK_TRIES):
        before, wall, after = time.monotonic(), time.time_ns(), time.monotonic()
        if found is None or after - before < found[0]:
            found = after - before, wall, (before + after) / 2
        if found[0] <= _CLOCK_TOGETHER:
            break
    assert found is not None
    return found[1], found[2]


def process_identity(pid: int | None = None) -> ProcessIdentity:
    """The identity of a process; `pid` None: of this one. `started` is 0 if there is no such process."""
    number = os.getpid() if pid is None else pid
    try:
        stat = Path(f"/proc/{number}/stat").read_bytes()
        return ProcessIdentity(number, int(stat.rpartition(b")")[2].split()[_START_TIME_FIELD]))
    except (OSError, IndexError, ValueError):
        return ProcessIdentity(number, 0)


def is_running(process: ProcessIdentity) -> bool:
    """Whether this same process still exists, stopped or not. A hint: a pid namespace may hide it."""
    return process.pid > 0 and process_identity(process.pid) == process
