"""A memory barrier on all processors at once, by membarrier(2). One side of a race pays for it, the other pays nothing.

A process that has registered needs no barrier of its own between a store and a load of shared memory. If `everywhere`
of another process comes between the two, then its caller sees the store. If it comes before both, then the load sees
what the caller stored. A process that is not running now has passed a barrier when it left its processor.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Final

_EXPEDITED, _REGISTER_EXPEDITED = 2, 4  # the global ones: they reach other processes
_SYSTEM_CALLS: Final = {
    "x86_64": 324,
    "aarch64": 283,
    "riscv64": 283,
    "loongarch64": 283,
    "ppc64le": 365,
    "s390x": 356,
}
_GRACE: Final = 0.002
"""Seconds. A processor keeps a store to itself for less than a microsecond."""


def register() -> bool:
    """Let the barriers of others reach this process, too. False: not here. Call it again in a forked child.

    The first time it may take milliseconds.
    """
    return _call(_REGISTER_EXPEDITED, ctypes.CDLL)() == 0


def everywhere() -> bool:
    """A barrier in every process that has registered, and in this one. It takes a microsecond or two.

    False: it is not possible here, and none was made.
    """
    return _call(_EXPEDITED)() == 0


def everywhere_surely() -> None:
    """As `everywhere`. Where that is not possible, it waits until the stores of other processes must have arrived."""
    if not everywhere():
        time.sleep(_GRACE)


@cache
def _call(command: int, library: type[ctypes.CDLL] = ctypes.PyDLL) -> Callable[[], int]:
    """Prepared, so that ctypes need not convert. PyDLL keeps the interpreter's lock: it is for a short call."""
    number = _SYSTEM_CALLS.get(platform.machine())
    if number is None or sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return _unknown
    arguments = ctypes.c_long(number), ctypes.c_int(command), ctypes.c_uint(0), ctypes.c_int(0)
    return partial(library(None).syscall, *arguments)


def _unknown() -> int:
    return -1
