"""Sleeping until a registry changes: one thread of this process waits for all its watchers, those of asyncio too.

Another one waits for all that follow the registry and need not hear of each commit at once: it rests after a bell.

The thread waits for the bell of the revision file, which the writer rings after a commit. It starts with the first
watcher, ends when nobody has watched for a second, and ends before a fork. Once a second it also calls the `look` of
each watcher, in case that a bell was not heard. So an idle process wakes one thread a second, for all watchers.

A watcher first joins, then compares the word, then sleeps. The thread keeps the bell's number from before it tells the
watchers, so a bell that rings in between is heard.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final
from weakref import WeakValueDictionary

from dspy_registry.registry_store import futex
from dspy_registry.registry_store.paths import FileIdentity
from dspy_registry.registry_store.revision import RevisionFile

LONGEST_SLEEP: Final = 1.0
"""Seconds. The thread sleeps no longer before it looks for changes."""
LONGEST_REST: Final = 10.0
"""Seconds. A watcher sleeps no longer before it looks itself: an interrupt may have left it without the thread."""

Wake = Callable[[], None]
Look = Callable[[], bool]


def can_sleep(file: RevisionFile) -> bool:
    """Whether somebody rings this file's bell for this process, and this system can wait for it."""
    return futex.is_available() and file.wakes_sleepers


@contextmanager
def joined(file: RevisionFile, wake: Wake, look: Look) -> Iterator[None]:
    """Within this block another thread calls `wake` at each bell, and within a second once `look` returns True.

    `look` says whether there may be a change. Both must be quick, and raise nothing.
    """
    waiter = waiter_of(file)
    try:
        waiter.join(wake, look)  # it may raise after the watcher was added
        yield
    finally:
        waiter.leave(wake)


class Waiter:
    """Waits for the bell of one revision file, and wakes all who joined. It rests so many seconds after each bell."""

    def __init__(self, file: RevisionFile, rest: float) -> None:
        self._file = file
        self._rest = rest
        self._seen = 0
        self._is_ending = False
        self._until_ending = threading.Lock()  # no Event, as in Follower.sleep: `end` may be called inside its `wait`
        self._until_ending.acquire()
        self._sleepers: dict[Wake, Look] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # a signal's handler may fork while its own thread holds it

    def join(self, wake: Wake, look: Look) -> None:
        """See `joined`. Raises RuntimeError where no thread can be started; they have joined all the same."""
        with self._lock:
            self._sleepers[wake] = look
            if self._thread is None and not self._is_ending:
                self._seen = self._file.bell.value
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="registry watcher", daemon=True)
        thread.start()  # before it is known: an interrupt in between must not leave one that never began
        self._thread = thread

    def leave(self, wake: Wake) -> None:
        """Wake these no more. They need not have joined."""
        with self._lock:
            self._sleepers.pop(wake, None)

    def _run(self) -> None:
        bell = self._file.bell
        while True:
            self._file.sleep(self._seen, LONGEST_SLEEP)
            rung = bell.value
            with self._lock:
                is_rung = rung != self._seen
                if self._is_ending or not (is_rung or self._sleepers):
                    self._thread = None  # after a fork the next one hears what has rung
                    return
                wakes = self._to_wake(is_rung=is_rung)
                self._seen = rung
            for wake in wakes:
                wake()
            if is_rung and self._rest:
                self._until_ending.acquire(timeout=self._rest)

    def _to_wake(self, *, is_rung: bool) -> list[Wake]:
        """All after a bell, and if the folder was replaced, which may ring none. Else those with something to see."""
        are_all = is_rung or not self._file.is_current()
        return [wake for wake, look in self._sleepers.items() if are_all or look()]

    def end(self) -> None:
        """End the thread. Watchers stay joined, and `resume` starts it again."""
        with self._lock:
            thread, self._is_ending = self._thread, True
        deadline = time.monotonic() + LONGEST_SLEEP
        while thread is not None and thread.is_alive() and time.monotonic() < deadline:
            self._file.bell.wake_all()  # of other processes too: they look, and sleep again
            with suppress(RuntimeError):  # it does not rest, or was told already
                self._until_ending.release()
            thread.join(0.001)
        self._until_ending.acquire(blocking=False)

    def resume(self) -> None:
        """After a fork, in the parent. The thread wakes all if a bell has rung meanwhile: `wake` may take locks."""
        with self._lock:
            self._is_ending = False
            if self._sleepers and self._thread is None:
                self._start()


_waiters: WeakValueDictionary[tuple[FileIdentity, float], Waiter] = WeakValueDictionary()
_waiters_lock = threading.RLock()


def waiter_of(file: RevisionFile, rest: float = 0.0) -> Waiter:
    """The one of this process that rests so many seconds after each bell of the file."""
    with _waiters_lock:
        waiter = _waiters.get((file.identity, rest))
        if waiter is None:
            waiter = _waiters[file.identity, rest] = Waiter(file, rest)
        return waiter


_ended: list[Waiter] = []


def _before_fork() -> None:
    _waiters_lock.acquire()
    _ended[:] = _waiters.values()
    for waiter in _ended:
        waiter.end()


def _after_fork_in_parent() -> None:
    for waiter in _ended:
        waiter.resume()
    _ended.clear()
    _waiters_lock.release()


def _after_fork_in_child() -> None:
    """The watchers were other threads'. The one that forked joins another waiter when it sleeps next."""
    global _waiters_lock
    _waiters_lock = threading.RLock()
    _ended.clear()
    _waiters.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
