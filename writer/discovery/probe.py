"""Looks at the installed DSPy and at packages, from inside the workers' interpreter.

It uses only the standard library, of Python 3.9 or newer. This project never imports it: `probe_run`
runs it and reads its files. DSPy is imported once, and then each package in a fork of that process.
So a package that hangs, dies or starts threads does not affect others, and DSPy is imported only once.

It sends reports over a socket, one JSON object a line, each at once:
  run                  the interpreter, and the exit codes of forks that did not come to their end
  <root>.<attempt>     what one attempt at one root found; root 0 is dspy, the packages follow
They go in pieces: a line with the report's name and a number of bytes, then these bytes. A fork has a socket to this
process instead, so that no package can write what another one reports: a file, or a pipe, could be opened by its name
or through /proc.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import select
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

# Relative, because in that interpreter these files are a package of another name (see probe_run.py).
from .facts import Families, clean, hide_environment
from .guard import PR_SET_DUMPABLE, guarded, prctl
from .walk import explore_dspy, explore_package

MAX_ATTEMPTS = 16
POLL_SECONDS = 0.02
MAX_BYTES = 9 * 1024 * 1024
"""Bytes taken from one attempt. It is stopped beyond that."""
PIECE = 32 * 1024
_FROM_THE_TOP = 8
"""Of the numbers that descriptors can have. Packages that close descriptors begin at the other end."""


def main(descriptor: str, seconds: str, *packages: str) -> None:
    """Look at DSPy, then at `packages`, until `seconds` from now. `descriptor` is the socket's. Does not return."""
    sys.argv = [""]  # a package must not read these arguments
    guarded(lambda: look(int(descriptor), float(seconds), packages))


def look(descriptor: int, seconds: float, packages: Sequence[str]) -> None:
    """What the guard's fork does."""
    prctl(PR_SET_DUMPABLE, 0)  # other processes of this user cannot look into this one
    deadline = time.monotonic() + seconds
    _end_by_alarm(deadline)
    hide_environment()
    outlet = Outlet(descriptor)
    run = Journal(outlet, "run")
    run.write("hello", executable=clean(sys.executable))
    families = explore_dspy(Journal(outlet, "0.0"))
    if families is not None:
        roots = [Root(outlet, deadline, families, i, name) for i, name in enumerate(packages, 1)]
        live: list[Attempt] = []
        for root in roots:
            live.append(Attempt(root, 0, frozenset(), _descriptors(live, root.outlet)))
        _supervise(live, run)
    os._exit(0)  # whatever threads DSPy started


class Outlet:
    """A descriptor to write to, which this moves out of the way of packages that close descriptors."""

    def __init__(self, descriptor: int) -> None:
        most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536)
        self._descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(most - _FROM_THE_TOP, 3))
        os.close(descriptor)
        self._identity = self._found()
        self._pid = os.getpid()

    def send(self, data: bytes) -> None:
        """Write these bytes."""
        if os.getpid() != self._pid:
            os._exit(0)  # a package forked while it was imported, and this is the child
        if self._found() != self._identity:
            os._exit(1)  # a package closed it, and opened something else
        while data:
            data = data[os.write(self._descriptor, data) :]

    @property
    def descriptor(self) -> int:
        """Where the bytes go."""
        return self._descriptor

    def _found(self) -> tuple[int, int]:
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino


class Journal:
    """JSON lines to an outlet: pieces of the report of this name. Empty: plain lines, of the only report there."""

    def __init__(self, outlet: Outlet, name: str = "") -> None:
        self._outlet = outlet
        self._name = name
        if name:
            self.send(b"")  # now the report is known to be begun

    def write(self, what: str, /, **fields: Any) -> None:
        """Write one record."""
        self.send((json.dumps({"type": what, **fields}, allow_nan=False) + "\n").encode("ascii"))

    def send(self, data: bytes) -> None:
        """Write lines that are encoded already."""
        if not self._name:
            self._outlet.send(data)
            return
        for start in range(0, max(len(data), 1), PIECE):
            piece = data[start : start + PIECE]
            self._outlet.send(f"{self._name} {len(piece)}\n".encode("ascii") + piece)


class Root(NamedTuple):
    """One package to look at. `order` is its number, from 1."""

    outlet: Outlet
    deadline: float
    families: Families
    order: int
    package: str


class Attempt:
    """One fork. It imports a package and its submodules, without those at which earlier forks got stuck."""

    def __init__(self, root: Root, number: int, skip: frozenset[str], others: Sequence[int]) -> None:
        self.root, self.number = root, number
        self.ended = False
        self._skip = skip
        self._succeeded = False
        self._at, self._since = root.package, time.monotonic()
        self._line, self._size = b"", 0
        self.descriptor, writing = (end.detach() for end in socket.socketpair())
        self._report = Journal(root.outlet, f"{root.order}.{number}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # for the threads of some DSPy
            self.pid = os.fork()
        if self.pid == 0:
            self._explore(writing, [self.descriptor, *others])
        os.close(writing)
        os.set_blocking(self.descriptor, False)

    def _explore(self, writing: int, closed: Sequence[int]) -> None:
        try:
            _end_by_alarm(self.root.deadline)
            for descriptor in closed:
                os.close(descriptor)
            prctl(PR_SET_DUMPABLE, 1)  # packages may look at themselves in /proc
            os.dup2(1, 2)  # the null device: what packages print is dropped
            explore_package(self.root.package, self._skip, Journal(Outlet(writing)), self.root.families)
            os._exit(0)
        finally:
            os._exit(1)

    def follow(self) -> None:
        """Take in what the fork has reported, and see how far it is."""
        while True:
            try:
                data = os.read(self.descriptor, 65536)
            except (BlockingIOError, ConnectionResetError):
                return
            if not data:
                return
            self._size += len(data)
            if self._size > MAX_BYTES:
                self.stop()
                return
            self._report.send(data)
            *whole, self._line = (self._line + data).split(b"\n")
            for line in whole:
                if line.startswith(b'{"type": "at"'):
                    self._at, self._since = _module(line) or self._at, time.monotonic()
                self.ended = self.ended or line.startswith(b'{"type": "end"')

    def close(self) -> None:
        """It has ended, and was followed to its end."""
        os.close(self.descriptor)

    def is_stuck(self) -> bool:
        """Whether one import has taken half of the time that was left when it began."""
        return time.monotonic() - self._since > (self.root.deadline - self._since) / 2

    def successor(self, others: Sequence[int]) -> Attempt | None:
        """One more fork, once, which leaves out the module at which this one is. None: nothing would be left."""
        if self._succeeded or self._at == self.root.package or self.number + 1 >= MAX_ATTEMPTS:
            return None
        self._succeeded = True
        return Attempt(self.root, self.number + 1, self._skip | {self._at}, others)

    def stop(self) -> None:
        """End it, without a successor."""
        self._succeeded = True
        os.kill(self.pid, signal.SIGKILL)


def _descriptors(live: Iterable[Attempt], outlet: Outlet) -> list[int]:
    """What the next fork may not have."""
    return [outlet.descriptor, *(attempt.descriptor for attempt in live)]


def _supervise(live: list[Attempt], run: Journal) -> None:
    """Wait until all attempts are over. An attempt that is stuck may still finish beside its successor."""
    while live:
        select.select([attempt.descriptor for attempt in live], [], [], POLL_SECONDS)
        for attempt in list(live):
            pid, status = os.waitpid(attempt.pid, os.WNOHANG)
            attempt.follow()
            if pid:
                live.remove(attempt)
                attempt.close()
            if attempt.ended:
                _stop_later(live, attempt)
            elif pid:
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                run.write("died", root=attempt.root.order, attempt=attempt.number, code=code)
            if not attempt.ended and (pid or attempt.is_stuck()):
                live.extend(filter(None, [attempt.successor(_descriptors(live, attempt.root.outlet))]))


def _module(line: bytes) -> str:
    """The module that a record names. What a package garbled names none."""
    try:
        return str(json.loads(line)["module"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _stop_later(live: list[Attempt], ended: Attempt) -> None:
    """Stop the attempts that leave out more than the one that has come to its end: they find nothing new."""
    for attempt in live:
        if attempt.root.order == ended.root.order and attempt.number > ended.number:
            attempt.stop()


def _end_by_alarm(deadline: float) -> None:
    """Make a signal end this process later, in case the process that started it, and would kill it, has ended."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    signal.alarm(math.ceil(deadline - time.monotonic()) + 2)
