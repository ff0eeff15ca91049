"""`python -m benchmarks.slow_memory`: what `record` takes where the first touch of memory is slow. Linux, as root.

Under some hypervisors the first touch of a page waits for another process, which supplies the page. Here another
process does so, too, by userfaultfd(2). Each process is fresh. It records a batch in memory that it has not touched,
then single calls, then a batch in memory that it has touched.
"""

from __future__ import annotations

import ctypes
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path
from typing import Final

from benchmarks.harness import Contender, Namespace, chunked
from benchmarks.rows_usage import FULL, NAME, PASS, PLAIN, UPDATE, first_pass
from benchmarks.serving import serving
from benchmarks.stores import OURS
from dspy_registry import ModuleInfo, RegistryWriter, UsageReporter

PROCESSES: Final = 7  # of each kind; medians of them are shown
DELAYS: Final = (None, 0.0, 30e-6, 60e-6, 100e-6)
"""Seconds that the other process lets a page wait beyond what it takes anyway. None: the kernel supplies pages."""
_PAGE: Final = 4096
_ARENA: Final = 2**20  # bytes that the interpreter asks of the kernel at once
_USERFAULTFD: Final = 323  # the system call's number on x86-64
_API, _REGISTER, _ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04  # from linux/userfaultfd.h
_CHUNK: Final = 128


def main() -> None:
    """Print a line for each delay."""
    if len(sys.argv) == 3:
        _measure(Path(sys.argv[1]), None if sys.argv[2] == "None" else float(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as room:
        path = Path(room, "registry")
        with RegistryWriter(path) as writer:
            writer.register_module(ModuleInfo(NAME))
        with serving(path):
            for delay in DELAYS:
                print(_line(delay, [_in_a_process(path, delay) for _ in range(PROCESSES)]))


def _line(delay: float | None, found: list[list[float]]) -> str:
    by = "by the kernel" if delay is None else f"{delay * 1e6:3.0f} µs late"
    figures = (
        "first batch {:5.2f} x, single calls {:4.2f} x, later batch {:4.2f} x a dict update; reporter's thread {:.3f}"
    )
    return f"pages {by:13}: {figures.format(*(statistics.median(one) for one in zip(*found, strict=True)))}"


def _in_a_process(path: Path, delay: float | None) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.slow_memory", str(path), str(delay)]
    return [float(word) for word in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]


def _measure(path: Path, delay: float | None) -> None:
    """Print the ratios of the first batch, of single calls and of a later batch, and the reporter's thread's share."""
    with UsageReporter(path) as reporter:
        reporter.record(NAME, 1.0)
        names: Namespace = {"store": reporter, "lock": threading.Lock(), "counts": {}}

        def emptied() -> Namespace:
            reporter.flush(10)
            return names

        ours, plain = Contender(OURS, FULL, emptied), Contender(PLAIN, UPDATE, emptied)
        asked = [NAME] * PASS
        chunks = chunked(asked, _CHUNK)
        kept = _begin_an_arena()
        with _served_by_another(delay):
            first = first_pass(ours, asked, _CHUNK)
            base = statistics.median(plain.batches(chunks, 1, names))
            single = statistics.median(ours.singles(asked)) / statistics.median(plain.singles(asked))
            emptied()
            later = statistics.median(ours.batches(chunks, 1, names))
        del kept
    print(
        first["first pass, ns"] / base,
        single,
        later / base,
        first["reporter's threads in it, of the calls' processor time"],
    )


def _begin_an_arena() -> list[tuple[float, ...]]:
    """Fill the interpreter's memory until it has just asked the kernel for more. Drop what is returned afterwards."""
    kept: list[tuple[float, ...]] = []
    before = _writable()
    while _writable() - before < _ARENA or len(kept) < _PAGE:
        kept += [(float(number),) * 12 for number in range(64)]
        before = min(before, _writable())
    return kept


def _writable() -> int:
    return sum(end - start for start, end in _memory())


def _memory() -> Iterator[tuple[int, int]]:
    """Where this process has anonymous memory that it may write."""
    for line in Path("/proc/self/maps").read_text(encoding="ascii").splitlines():
        place, rights, _, _, inode, *name = line.split()
        if rights == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            start, end = (int(number, 16) for number in place.split("-"))
            yield start, end


@contextmanager
def _served_by_another(delay: float | None) -> Iterator[None]:
    """Meanwhile another process supplies the pages that this one touches first."""
    if delay is None:
        yield
        return
    descriptor = ctypes.CDLL(None, use_errno=True).syscall(_USERFAULTFD, os.O_CLOEXEC)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "userfaultfd")
    ioctl(descriptor, _API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
    child = os.fork()
    if child == 0:
        _supply(descriptor, delay)
    for start, end in list(_memory()):
        ioctl(descriptor, _REGISTER, bytearray(struct.pack("QQQQ", start, end - start, 1, 0)))
    os.close(descriptor)  # the child's alone from here on: with the child's end the kernel supplies pages again
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _supply(descriptor: int, delay: float) -> None:
    while True:
        asked = os.read(descriptor, 32)
        until = time.perf_counter() + delay
        while time.perf_counter() < until:
            pass
        place = struct.unpack_from("Q", asked, 16)[0] // _PAGE * _PAGE
        ioctl(descriptor, _ZEROPAGE, bytearray(struct.pack("QQQq", place, _PAGE, 0, 0)))


if __name__ == "__main__":
    main()
