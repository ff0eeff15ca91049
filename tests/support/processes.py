"""Processes of their own for tests: each runs a function of the test's module and talks over pipes, never by time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.fork_server import start


class Process:
    """A child that runs `module.function(*arguments)`; `tell` writes a line to it, `hear` reads one of its answers."""

    def __init__(self, module: str, function: str, *arguments: Any, **environment: str) -> None:
        self._process = start(module, function, *arguments, environment={**os.environ, **environment})

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, message: Any = None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """The next answer; None when the child is dead or done."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def ask(self, message: Any = None) -> Any:
        self.tell(message)
        return self.hear()

    def heard(self) -> list[Any]:
        """All further answers, until the child ends."""
        found = []
        while (answer := self.hear()) is not None:
            found.append(answer)
        return found

    def kill(self) -> int:
        self._process.kill()
        return self.wait()

    def wait(self) -> int:
        """The exit status; negative: the signal that killed it."""
        return self._process.wait()

    def close(self) -> int:
        """Let a child that reads its standard input come to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        status = self.wait()
        self._process.stdout.close()
        return status


@contextmanager
def child(module: str, function: str, *arguments: Any, **environment: str) -> Iterator[Process]:
    """A child that is gone afterwards, whatever happens."""
    process = Process(module, function, *arguments, **environment)
    try:
        yield process
    finally:
        process._process.kill()
        process._process.wait()
        process._process.close()


def run(module: str, function: str, *arguments: Any, **environment: str) -> list[Any]:
    """All a child says; it must end well."""
    with child(module, function, *arguments, **environment) as process:
        said = process.heard()
        assert process.wait() == 0
        return said


# The child's side


def say(message: Any) -> None:
    """Send one answer to the parent."""
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def requests() -> Iterator[Any]:
    """What the parent tells, until it has nothing more to say."""
    for line in sys.stdin:
        yield json.loads(line)
