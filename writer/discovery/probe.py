"""Looks at the installed DSPy and at packages, from inside the workers' interpreter.

It uses only the standard library, of Python 3.9 or newer. This project never imports it: `probe_run`
runs it and reads its files. DSPy is imported once, and then each package in a fork of that process.
So a package that hangs, dies or starts threads does not affect others, and DSPy is imported only once.

It writes to the given folder, one JSON object a line, each at once:
  run.jsonl                  the interpreter, and the exit codes of forks that did not come to their end
  <root>.<attempt>.jsonl     what one attempt at one root found; root 0 is dspy, the packages follow
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

# Relative, because in that interpreter these files are a package of another name (see probe_run.py).
from .facts import Families, clean
from .walk import explore_dspy, explore_package

MAX_ATTEMPTS = 16
POLL_SECONDS = 0.02


def main(folder: str, seconds: str, *packages: str) -> None:
    """Look at DSPy, then at `packages`, until `seconds` from now. Does not return."""
    sys.argv = [""]  # a package must not read these arguments
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # while it is ignored, exit codes of forks are lost
    deadline = time.monotonic() + float(seconds)
    _end_by_alarm(deadline)
    run = Journal(Path(folder, "run.jsonl"))
    run.write("hello", executable=clean(sys.executable))
    families = explore_dspy(Journal(Path(folder, "0.0.jsonl")))
    if families is not None:
        roots = [Root(folder, deadline, families, i, name) for i, name in enumerate(packages, 1)]
        _supervise([Attempt(root, 0, frozenset()) for root in roots], run)
    os._exit(0)  # whatever threads DSPy started


class Journal:
    """A file of JSON lines. It is opened for each line: a package may have closed every descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pid = os.getpid()

    def write(self, what: str, /, **fields: Any) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # a package forked while it was imported, and this is the child
        line = json.dumps({"type": what, **fields}, allow_nan=False) + "\n"
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, line.encode("ascii"))
        finally:
            os.close(descriptor)


class Root(NamedTuple):
    """One package to look at. `order` is its number, from 1."""

    folder: str
    deadline: float
    families: Families
    order: int
    package: str


class Attempt:
    """One fork. It imports a package and its submodules, without those at which earlier forks got stuck."""

    def __init__(self, root: Root, number: int, skip: frozenset[str]) -> None:
        self.root, self.number = root, number
        self.ended = False
        self._skip = skip
        self._succeeded = False
        self._at, self._since, self._read = root.package, time.monotonic(), 0
        self._path = Path(root.folder, f"{root.order}.{number}.jsonl")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # for the threads of some DSPy
            self.pid = os.fork()
        if self.pid == 0:
            self._explore()

    def _explore(self) -> None:
        try:
            _end_by_alarm(self.root.deadline)
            os.dup2(1, 2)  # the null device: what packages print is dropped
            journal = Journal(self._path)
            explore_package(self.root.package, self._skip, journal, self.root.families)
            os._exit(0)
        finally:
            os._exit(1)

    def follow(self) -> None:
        """Read in the journal how far the fork is."""
        if not self._path.exists():
            return
        with self._path.open("rb") as journal:
            journal.seek(self._read)
            whole = journal.read().rpartition(b"\n")[0]
        self._read += len(whole) + 1 if whole else 0
        for line in whole.splitlines():
            if line.startswith(b'{"type": "at"'):
                self._at, self._since = json.loads(line)["module"], time.monotonic()
            self.ended = self.ended or line.startswith(b'{"type": "end"')

    def is_stuck(self) -> bool:
        """Whether one import has taken half of the time that was left when it began."""
        return time.monotonic() - self._since > (self.root.deadline - self._since) / 2

    def successor(self) -> Attempt | None:
        """One more fork, once, which leaves out the module at which this one is. None: nothing would be left."""
        if self._succeeded or self._at == self.root.package or self.number + 1 >= MAX_ATTEMPTS:
            return None
        self._succeeded = True
        return Attempt(self.root, self.number + 1, self._skip | {self._at})

    def stop(self) -> None:
        """End it, without a successor."""
        self._succeeded = True
        os.kill(self.pid, signal.SIGKILL)


def _supervise(live: list[Attempt], run: Journal) -> None:
    """Wait until all attempts are over. An attempt that is stuck may still finish beside its successor."""
    while live:
        time.sleep(POLL_SECONDS)
        for attempt in list(live):
            pid, status = os.waitpid(attempt.pid, os.WNOHANG)
            attempt.follow()
            if pid:
                live.remove(attempt)
            if attempt.ended:
                _stop_later(live, attempt)
            elif pid:
                code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                run.write("died", root=attempt.root.order, attempt=attempt.number, code=code)
            if not attempt.ended and (pid or attempt.is_stuck()):
                live.extend(filter(None, [attempt.successor()]))


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
