"""The least that a row can take on this machine: its necessary steps, written by hand and measured in the same run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

HandOver = Callable[[], object]
"""Has another thread do nothing, and waits for it for a bounded time."""


class RouteByHand:
    """`Registry.route` without its decision: the same parameters, a look at a clock, and a key of the usual six."""

    def __init__(self, answer: object) -> None:
        self._answer = answer
        self._kept: dict[Any, object] = {}

    def route(
        self,
        capabilities: Any = (),
        category: Any = None,
        pool_type: Any = None,
        native: Any = None,
        gpu: Any = None,
        max_memory: Any = None,
        max_compute: Any = None,
        any_capabilities: Any = None,
        without_capabilities: Any = None,
        names: Any = None,
        input_size: Any = None,
        prefer: Any = "balanced",
        deadline_ms: Any = None,
        max_cost_usd: Any = None,
        exclude: Any = (),
        accept: Any = None,
        basis: str = "auto",
        label: Any = None,
        key: Any = None,
    ) -> object:
        try:
            if time.monotonic() > 0:
                return self._kept[capabilities, names, input_size, prefer, deadline_ms, basis]
        except KeyError:
            pass
        self._kept[capabilities, names, input_size, prefer, deadline_ms, basis] = self._answer
        return self._answer


@contextmanager
def by_locks() -> Iterator[HandOver]:
    """Two locks: one wakes the thread, the other one who waits for it."""
    begin, done = threading.Lock(), threading.Lock()
    begin.acquire()
    done.acquire()
    is_over = False

    def serve() -> None:
        while True:
            begin.acquire()
            if is_over:
                return
            done.release()

    def hand_over() -> None:
        begin.release()
        done.acquire(True, 60)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield hand_over
    finally:
        is_over = True
        begin.release()
        thread.join()


@contextmanager
def by_eventfd() -> Iterator[HandOver]:
    """An eventfd wakes the thread, as the router does, and a lock who waits for it."""
    bell, done = os.eventfd(0), threading.Lock()
    done.acquire()
    is_over = False

    def serve() -> None:
        while True:
            os.read(bell, 8)
            if is_over:
                return
            done.release()

    def hand_over() -> None:
        os.eventfd_write(bell, 1)
        done.acquire(True, 60)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield hand_over
    finally:
        is_over = True
        os.eventfd_write(bell, 1)
        thread.join()
        os.close(bell)
