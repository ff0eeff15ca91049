"""Looks at the installed DSPy and at packages, from inside the workers' interpreter.

It uses only the standard library, of Python 3.9 or newer. This project never imports it: `probe_run`
runs it and reads its files. DSPy is imported once, and then each package in a fork of that process.
So a package that hangs, dies or starts threads does not affect others, and DSPy is imported only once.

It writes to a folder, one JSON object a line, each at once:
  run.jsonl                  the interpreter, and the exit codes of forks that did not come to their end
  <root>.<attempt>.jsonl     what one attempt at one root found; root 0 is dspy, the packages follow
It knows the folder by a descriptor alone. A fork has a pipe to this process instead, so that no package can write what
another one reports.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import select
import signal
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
_FROM_THE_TOP = 8
"""Of the numbers that descriptors can have. Packages that close descriptors begin at the other end."""


def main(folder: str, seconds: str, *packages: str) -> None:
    """Look at DSPy, then at `packages`, until `seconds` from now. `folder` is a descriptor. Does not return."""
    sys.argv = [""]  # a package must not read these arguments
    guarded(lambda: look(int(folder), float(seconds), packages))


def look(folder: int, seconds: float, packages: Sequence[str]) -> None:
    """What the guard's fork does."""
    os.set_inheritable(folder, False)
    prctl(PR_SET_DUMPABLE, 0)  # other processes of this user cannot reach the folder through /proc
    deadline = time.monotonic() + seconds
    _end_by_alarm(deadline)
    hide_environment()
    run = Journal(_opened(folder, "run.jsonl"))
    run.write("hello", executable=clean(sys.executable))
    about_dspy = Journal(_opened(folder, "0.0.jsonl"))
    families = explore_dspy(about_dspy)
    os.close(about_dspy.descriptor)
    if families is not None:
        roots = [Root(folder, deadline, families, i, name) for i, name in enumerate(packages, 1)]
        live: list[Attempt] = []
        for root in roots:
            live.append(Attempt(root, 0, frozenset(), _descriptors(live, run)))
        _supervise(live, run)
    os._exit(0)  # whatever threads DSPy started


def _opened(folder: int, name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=folder)


class Journal:
    """JSON lines, written to a descriptor that this moves out of the way of packages that close descriptors."""

    def __init__(self, descriptor: int) -> None:
        most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 65536)
        self._descriptor = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(most - _FROM_THE_TOP, 3))
        os.close(descriptor)
        self._identity = self._found()
        self._pid = os.getpid()

    def write(self, what: str, /, **fields: Any) -> None:
        """Write one record."""
        if os.getpid() != self._pid:
            os._exit(0)  # a package forked while it was imported, and this is the child
        line = (json.dumps({"type": what, **fields}, allow_nan=False) + "\n").encode("ascii")
        if self._found() != self._identity:
            os._exit(1)  # a package closed it, and opened something else
        while line:
            line = line[os.write(self._descriptor, line) :]

    @property
    def descriptor(self) -> int:
        """Where the records go."""
        return self._descriptor

    def _found(self) -> tuple[int, int]:
        try:
            found = os.fstat(self._descriptor)
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino


class Root(NamedTuple):
    """One package to look at. `order` is its number, from 1."""

    folder: int
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
        self.pipe, writing = os.pipe()
        self._report = _opened(root.folder, f"{root.order}.{number}.jsonl")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # for the threads of some DSPy
            self.pid = os.fork()
        if self.pid == 0:
            self._explore(writing, [self.pipe, self._report, root.folder, *others])
        os.close(writing)
        os.set_blocking(self.pipe, False)

    @property
    def descriptors(self) -> tuple[int, int]:
        """Those that no other fork may have."""
        return self.pipe, self._report

    def _explore(self, writing: int, closed: Sequence[int]) -> None:
        try:
            _end_by_alarm(self.root.deadline)
            for descriptor in closed:
                os.close(descriptor)
            prctl(PR_SET_DUMPABLE, 1)  # packages may look at themselves in /proc
            os.dup2(1, 2)  # the null device: what packages print is dropped
            explore_package(self.root.package, self._skip, Journal(writing), self.root.families)
            os._exit(0)
        finally:
            os._exit(1)

    def follow(self) -> None:
        """Take in what the fork has reported, and see how far it is."""
        while True:
            try:
                data = os.read(self.pipe, 65536)
            except BlockingIOError:
                return
            if not data:
                return
            self._size += len(data)
            if self._size > MAX_BYTES:
                self.stop()
                return
            os.write(self._report, data)
            *whole, self._line = (self._line + data).split(b"\n")
            for line in whole:
                if line.startswith(b'{"type": "at"'):
                    self._at, self._since = _module(line) or self._at, time.monotonic()
                self.ended = self.ended or line.startswith(b'{"type": "end"')

    def close(self) -> None:
        """It has ended, and was followed to its end."""
        for descriptor in self.descriptors:
            os.close(descriptor)

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


def _descriptors(live: Iterable[Attempt], run: Journal) -> list[int]:
    """What the next fork may not have."""
    return [run.descriptor, *(descriptor for attempt in live for descriptor in attempt.descriptors)]


def _supervise(live: list[Attempt], run: Journal) -> None:
    """Wait until all attempts are over. An attempt that is stuck may still finish beside its successor."""
    while live:
        select.select([attempt.pipe for attempt in live], [], [], POLL_SECONDS)
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
                live.extend(filter(None, [attempt.successor(_descriptors(live, run))]))


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
