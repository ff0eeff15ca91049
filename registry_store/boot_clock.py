"""What processes of one host agree on: the seconds since it booted, which boot that was, and which process is which."""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

_gettime, _BOOTTIME = time.clock_gettime, time.CLOCK_BOOTTIME  # looked up once: limits ask at each begin and end
_MORE_TRIES, _TOGETHER = 7, 20e-6  # seconds
_START_TIME_FIELD: Final = 19  # of /proc/PID/stat, counted after the command, which may hold anything


class ProcessIdentity(NamedTuple):
    """A process, told apart from a later one with the same pid. `started` is in clock ticks since boot; 0: unknown."""

    pid: int
    started: int


class Clocks(NamedTuple):
    """One moment: `wall` in nanoseconds since the epoch, `monotonic` and `boot` in seconds as those clocks count."""

    wall: int
    monotonic: float
    boot: float


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


def clocks() -> Clocks:
    """What the clocks show at one moment.

    Another thread may run between two readings, for many milliseconds under load. So all are read between two readings
    of one clock. That is repeated until these two are close, and the closest of a few tries counts.
    """
    apart, found = _read_clocks()
    for _ in range(_MORE_TRIES):
        if apart <= _TOGETHER:
            break
        apart, found = min((apart, found), _read_clocks())
    return found


def _read_clocks() -> tuple[float, Clocks]:
    """What the clocks show, and how many seconds passed between the first and the last reading."""
    before, wall, boot, after = time.monotonic(), time.time_ns(), boot_seconds(), time.monotonic()
    return after - before, Clocks(wall, (before + after) / 2, boot)


def process_identity(pid: int | None = None) -> ProcessIdentity:
    """The identity of a process; `pid` None: of this one. `started` is 0 if there is no such process."""
    number = os.getpid() if pid is None else pid
    try:
        stat = Path(f"/proc/{number}/stat").read_bytes()
        return ProcessIdentity(number, int(stat.rpartition(b")")[2].split()[_START_TIME_FIELD]))
    except (OSError, IndexError, ValueError):
        return ProcessIdentity(number, 0)


@cache
def own_identity() -> ProcessIdentity:
    """The identity of this process, read once."""
    return process_identity()


os.register_at_fork(after_in_child=own_identity.cache_clear)


def is_running(process: ProcessIdentity) -> bool:
    """Whether this same process still exists, stopped or not. A hint: a pid namespace may hide it."""
    return process.pid > 0 and process_identity(process.pid) == process
