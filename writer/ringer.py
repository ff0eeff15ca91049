"""Waking those who watch, after a commit. A commit wakes the first, and a thread the others, so that no commit waits.

The thread starts with the first commit that somebody waits for, ends when it had nothing to do for a while, and ends
before a fork. Where nobody watches there is none: to wake it took each commit longer than to find that nobody waits.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import Final

from dspy_registry.registry_store.revision import RevisionFile

_IDLE_SECONDS: Final = 10.0
_LONGEST_END: Final = 1.0


class Ringer:
    """Rings the bell of a revision file. Threads may share it."""

    def __init__(self, file: RevisionFile) -> None:
        self._file = file
        self._lock = threading.RLock()  # a signal's handler may fork while its own thread holds it
        self._is_due = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_ending = False
        _ringers.add(self)

    def ring(self) -> None:
        """Wake all who watch, soon. Several calls at once may wake them once. It raises nothing."""
        if not self._file.ring_first():
            return
        with self._lock:
            self._is_due.set()
            try:
                self._begin()
            except RuntimeError:  # no thread can be started any more: the process ends, or has too many
                self._file.ring_others()

    def _begin(self) -> None:
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="registry ringer", daemon=True)
            thread.start()  # before it is known: an interrupt in between must not leave one that never began
            self._thread = thread

    def end(self) -> None:
        """Wake those who are still to be woken, and end the thread. A later `ring` begins another one."""
        with self._lock:
            thread, self._is_ending = self._thread, True
            if thread is not None:
                self._is_due.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join(_LONGEST_END)
        self._is_ending = False

    def _run(self) -> None:
        while True:
            self._is_due.wait(_IDLE_SECONDS)
            with self._lock:
                is_due, is_ending = self._is_due.is_set(), self._is_ending
                self._is_due.clear()
                if is_ending or not is_due:
                    self._thread = None
            if is_due:
                self._file.ring_others()
            if is_ending or not is_due:
                return


_ringers: weakref.WeakSet[Ringer] = weakref.WeakSet()


def _end_all() -> None:
    """Before a fork: a child would have locks whose holders are gone, and Python warns of threads."""
    for ringer in list(_ringers):
        ringer.end()


def _begin_in_child() -> None:
    """The child is not the writer, and its locks may have been held by threads that it does not have."""
    for ringer in list(_ringers):
        ringer._lock, ringer._is_due = threading.RLock(), threading.Event()


os.register_at_fork(before=_end_all, after_in_child=_begin_in_child)
