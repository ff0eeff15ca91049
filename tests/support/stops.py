"""Processes that are stopped and continued at random, as a busy machine does it: at any instruction, for any time."""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST = 0.004  # seconds: several commits


@contextmanager
def stopped_at_random(pids: Iterable[int], seed: int = 1) -> Iterator[None]:
    """Until the end of the `with`. Every process goes on afterwards."""
    over = threading.Event()
    thread = threading.Thread(target=_stop_and_continue, args=(list(pids), random.Random(seed), over))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _stop_and_continue(pids: list[int], chance: random.Random, over: threading.Event) -> None:
    while not over.is_set():
        chosen = [pid for pid in pids if chance.random() < 0.7]
        with suppress(ProcessLookupError):
            for pid in chosen:
                os.kill(pid, signal.SIGSTOP)
            time.sleep(chance.uniform(0, _LONGEST))
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        time.sleep(chance.uniform(0, 0.001))


def forgetting_meta_pages(folder: Path) -> Callable[[], None]:
    """A function that makes this process's next look at LMDB's meta pages fault them in, as when memory is short.

    That is within `begin`, where it makes the moment in which a commit can be seen too early a hundred times longer.
    The registry must be open.
    """
    data = str(folder / "data.mdb")
    libc = ctypes.CDLL(None, use_errno=True)

    def start() -> int:
        lines = Path("/proc/self/maps").read_text().splitlines()
        return next((int(line.partition("-")[0], 16) for line in lines if line.endswith(data)), 0)

    def forget() -> None:
        # The place is looked up each time: a reader that opens its files again maps them elsewhere.
        if not (mapped := start()):
            return  # at this moment it has no file open
        address, length = ctypes.c_void_p(mapped), ctypes.c_size_t(2 * mmap.PAGESIZE)
        if libc.madvise(address, length, mmap.MADV_DONTNEED):
            raise OSError(ctypes.get_errno(), "madvise")

    return forget
