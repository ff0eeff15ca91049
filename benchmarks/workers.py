"""Processes that take requests over a pipe. They are spawned, not forked, to be like independent workers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Final

CONTEXT: Final = multiprocessing.get_context("spawn")
PATIENCE: Final = 120.0  # seconds that a process may take to start, to answer or to end


class Workers:
    """Processes that each run `target(*arguments, pipe)`, one for each of `arguments`. They are ready on return.

    A target sends one answer when it is ready, and then one to each of the `requests` of its pipe.
    """

    def __init__(self, target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> None:
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for each in arguments:
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=target, args=(*each, theirs), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            _answer(pipe)

    def ask(self, request: Any, count: int | None = None) -> list[Any]:
        """Send a request to the first `count` processes (None: all). Returns their answers."""
        for pipe in self._pipes[:count]:
            pipe.send(request)
        return [_answer(pipe) for pipe in self._pipes[:count]]

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.close()
            process.join(PATIENCE)


def requests(pipe: Connection) -> Iterator[Any]:
    """The requests of a pipe, until the other end is closed."""
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def _answer(pipe: Connection) -> Any:
    if not pipe.poll(PATIENCE):
        raise TimeoutError("a benchmark process does not answer")
    return pipe.recv()
