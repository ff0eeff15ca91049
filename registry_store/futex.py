"""Waiting until a 32-bit word changes that processes share in a mapped file, and waking those who wait.

It calls Linux's futex through ctypes, which releases the interpreter's lock meanwhile. If there is no futex, or it is
forbidden, waiting is polling. No wait exceeds a second, because the process that should wake may have been killed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import platform
import sys
import time
from collections.abc import Callable
from functools import cache, partial
from random import getrandbits
from typing import Final

LONGEST_WAIT: Final = 1.0
"""Seconds. A lost wake-up costs no more than this."""

WORD_BYTES: Final = 4
_WORDS: Final = 2**32
_LARGEST: Final = _WORDS - 1
_ALL: Final = 2**31 - 1

_FUTEX_WAIT, _FUTEX_WAKE, _FUTEX_REQUEUE = 0, 1, 3  # not the private ones: the word is in memory of several processes
_SYSTEM_CALLS: Final = {
    "x86_64": 202,
    "aarch64": 98,
    "riscv64": 98,
    "loongarch64": 98,
    "ppc64le": 221,
    "s390x": 238,
}
_POLL_SECONDS: Final = 0.002
_FORBIDDEN: Final = (errno.ENOSYS, errno.EPERM, errno.EACCES)  # an old kernel, a seccomp filter


def is_available() -> bool:
    """Whether this system has a futex. Without one, waiting is polling."""
    return _system_call() is not None


class FutexWord:
    """One aligned word of a mapping. A read-only mapping is enough to wait.

    The mapping cannot be closed before `release`. Raises ValueError if `offset` is not a multiple of 4.
    """

    def __init__(self, mapping: mmap.mmap, offset: int) -> None:
        if offset % WORD_BYTES:
            raise ValueError("a futex word is aligned to its four bytes")
        self._view = memoryview(mapping)[offset : offset + WORD_BYTES].cast("I", shape=[])
        buffer = _Buffer()
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(self._view), ctypes.byref(buffer), 0)
        # prepared: when the interpreter ends, this module is emptied before a word that another module holds
        self._give_back = partial(ctypes.pythonapi.PyBuffer_Release, ctypes.byref(buffer))
        self._address = ctypes.c_void_p(buffer.buf)
        self.wake_one = _waker(self._address)
        """Wakes one of those who wait. It is prepared here because it is called often."""
        self._aside = ctypes.c_void_p(buffer.buf + WORD_BYTES)
        self._set_aside = _requeuer(self._address, self._aside)

    def __del__(self) -> None:
        self.release()

    @property
    def value(self) -> int:
        """The word now, 0 to 2**32 - 1."""
        return self._view[()]

    def store(self, value: int) -> None:
        """Set the word. Needs a writable mapping. Wakes nobody."""
        self._view[()] = value % _WORDS

    def wait(self, seen: int, seconds: float) -> None:
        """Wait until the word is no longer `seen`, somebody wakes, or these seconds are over: at most one.

        It may return earlier for no reason, or after a signal. So the caller must check again what it waits for.
        """
        remaining = min(seconds, LONGEST_WAIT)
        if remaining <= 0 or self._view[()] != seen:
            return
        call = _system_call()
        if call is None or not _waited(call, self._address, seen, remaining):
            _poll(self._view, seen, remaining)

    def advance(self) -> None:
        """Store the next number, in a word that one process changes: 1 follows the last. Wakes nobody."""
        view = self._view
        view[()] = view[()] % _LARGEST + 1

    def change(self) -> None:
        """Store a random number, in a word that several processes change. Wakes nobody.

        Adding one without atomic instructions could bring an old number back.
        """
        self._view[()] = getrandbits(32)

    def set_aside(self) -> bool:
        """Let those who wait go on doing so where `wake_aside` finds them. Returns whether anybody does.

        It takes a microsecond, and none of them runs at once. The word behind this one is only a place to wait at:
        nothing is stored in it.
        """
        return self._set_aside() != 0  # below 0: it is forbidden, and not known

    def wake_aside(self) -> None:
        """Wake all who were set aside."""
        call = _system_call()
        if call is not None:
            call(self._aside, _FUTEX_WAKE, _ALL, None)
            call(self._address, _FUTEX_WAKE, _ALL, None)  # who could not be set aside

    def wake_all(self) -> None:
        """Wake all who wait. Without a futex they poll, so nothing is done. Fifty take about 2 ms."""
        call = _system_call()
        if call is not None:
            call(self._address, _FUTEX_WAKE, _ALL, None)

    def release(self) -> None:
        """Stop using the mapping, so that it can be closed. The word must not be used afterwards."""
        give_back = self.__dict__.pop("_give_back", None)
        if give_back is not None:
            give_back()
            self._view.release()


class _Buffer(ctypes.Structure):
    """Py_buffer. It is the only way to get the address of a read-only mapping."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def _waker(address: ctypes.c_void_p) -> Callable[[], int]:
    """A prepared call that ctypes need not convert. It keeps the interpreter's lock, since it takes a microsecond."""
    number = _number()
    if number is None:
        return _nobody_waits
    arguments = ctypes.c_long(number), address, ctypes.c_int(_FUTEX_WAKE), ctypes.c_int(1)
    return partial(_library().syscall, *arguments)


def _requeuer(address: ctypes.c_void_p, aside: ctypes.c_void_p) -> Callable[[], int]:
    """Prepared as `_waker` is. It lets those who wait at one address wait at the other, and returns how many did."""
    number = _number()
    if number is None:
        return _nobody_waits
    which = ctypes.c_long(number), address, ctypes.c_int(_FUTEX_REQUEUE)
    return partial(_library().syscall, *which, ctypes.c_int(0), ctypes.c_long(_ALL), aside)


def _nobody_waits() -> int:
    """Wakes nobody: without a futex, those who wait poll."""
    return 0


@cache
def _library() -> ctypes.PyDLL:
    return ctypes.PyDLL(None)


@cache
def _number() -> int | None:
    if sys.platform != "linux" or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    return _SYSTEM_CALLS.get(platform.machine())


_Call = Callable[[ctypes.c_void_p, int, int, object], int]


@cache
def _system_call() -> _Call | None:
    """futex(2) of this machine as (address, operation, value, timeout); None: poll."""
    number = _number()
    if number is None:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    syscall.restype = ctypes.c_long
    syscall.argtypes = [ctypes.c_long, ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_void_p]

    def futex(address: ctypes.c_void_p, operation: int, value: int, timeout: object) -> int:
        done: int = syscall(number, address, operation, value, timeout)
        return done

    return futex


def _waited(call: _Call, address: ctypes.c_void_p, seen: int, seconds: float) -> bool:
    """Wait with the futex. False: it is forbidden here. True: woken, timed out, interrupted or too late."""
    whole = int(seconds)
    timeout = _Timespec(whole, int((seconds - whole) * 1e9))
    done = call(address, _FUTEX_WAIT, seen, ctypes.byref(timeout))
    return done == 0 or ctypes.get_errno() not in _FORBIDDEN


def _poll(view: memoryview, seen: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while view[()] == seen and (left := end - time.monotonic()) > 0:
        time.sleep(min(_POLL_SECONDS, left))
