"""Parses manifests in a process beside this one, which can be ended: see `parse_worker`."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import weakref
from typing import Final

import msgspec

from dspy_registry.writer.manifests.declarations import LoadedFile, unreadable
from dspy_registry.writer.manifests.lines import Lines, Path
from dspy_registry.writer.manifests.parse_worker import Parsed, Question, receive, send

CPU_SECONDS: Final = 10.0
"""The processor's time that one file may take."""

_SILENCE: Final = 120.0
"""Seconds without an answer after which the process is ended: it is stopped, or starved."""

# Isolated, with the path of this process: it runs the same code, and nothing of the working directory.
_START: Final = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from dspy_registry.writer.manifests.parse_worker import main
main(float(sys.argv[2]))
"""

_decode = msgspec.msgpack.Decoder(Parsed).decode


class ParserClosedError(Exception):
    """The parser was closed, while or before it was asked."""


class _Worker:
    """One process, and the connection to it."""

    def __init__(self, cpu_seconds: float) -> None:
        self.connection, theirs = socket.socketpair()
        try:
            with theirs:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-c", _START, json.dumps(sys.path), str(cpu_seconds)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # an interrupt from the keyboard is for the parent
                )
        except BaseException:
            self.connection.close()
            raise
        self.connection.settimeout(_SILENCE)

    def ask(self, question: Question) -> Parsed:
        """Raises EOFError when the process has ended, OSError when it is silent."""
        try:
            send(self.connection, question)
        except (BrokenPipeError, ConnectionResetError):
            raise EOFError from None
        try:
            return _decode(receive(self.connection))
        except ConnectionResetError:
            raise EOFError from None

    def end(self) -> int:
        """End the process, from any thread; its exit code. A thread that waits for its answer gets EOFError."""
        self.process.kill()
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        return self.process.wait()

    def discard(self) -> int:
        """End the process and close the connection; its exit code. By the thread that asks."""
        code = self.end()
        self.connection.close()
        return code


class Parser:
    """Loads the content of manifests. Threads may share it, and take turns. `close` it, from any thread."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        self._cpu_seconds = cpu_seconds
        self._workers: list[_Worker] = []  # none, or the one that runs
        self._turn = threading.Lock()
        self._is_closed = False
        weakref.finalize(self, _discard_all, self._workers)

    def load(self, file: str, content: bytes, suffix: str) -> LoadedFile:
        """What the content declares, or all its errors. Raises OSError when no process starts, ParserClosedError."""
        question = Question(file, suffix, content)
        with self._turn:
            parsed = self._ask(question) or self._ask(question)  # it may have been ended by chance: once more
        if parsed is None:
            return unreadable(file, "cannot be read: the process that reads it was killed, twice")
        line_of = _LinesWhenNeeded(self, msgspec.structs.replace(question, lines=True))
        return LoadedFile(file, parsed.declared, parsed.errors, parsed.places, line_of)

    def lines(self, question: Question) -> Lines:
        """The lines of what a content declares. Empty when they cannot be known any longer."""
        try:
            with self._turn:
                parsed = self._ask(question)
        except (OSError, ParserClosedError):
            return {}
        return dict(parsed.lines) if parsed is not None else {}

    def close(self) -> None:
        """End the process. A thread that waits for its answer gets ParserClosedError."""
        self._is_closed = True
        for worker in list(self._workers):
            worker.end()

    def _ask(self, question: Question) -> Parsed | None:
        """The answer. None: the process was ended from outside. Raises OSError, ParserClosedError."""
        if not self._workers and not self._is_closed:
            self._workers.append(_Worker(self._cpu_seconds))
        if self._is_closed:
            raise ParserClosedError
        worker = self._workers[0]
        try:
            return worker.ask(question)
        except (EOFError, OSError) as error:
            code = worker.discard()
            self._workers.remove(worker)
            if self._is_closed:
                raise ParserClosedError from None
            if code == -signal.SIGPROF or isinstance(error, TimeoutError):
                return Parsed(errors=unreadable(question.file, self._too_slow()).errors)
            return None

    def _too_slow(self) -> str:
        return f"takes more than {self._cpu_seconds:g} s of computing to read: divide it, or nest it less"


class _LinesWhenNeeded:
    """`line_of` of a file: found only when an error shows together with other files."""

    def __init__(self, parser: Parser, question: Question) -> None:
        self._parser = parser
        self._question = question
        self._lines: Lines | None = None

    def __call__(self, path: Path) -> int:
        if self._lines is None:
            self._lines = self._parser.lines(self._question)
        return next((self._lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self._lines), 0)


def _discard_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.discard()
