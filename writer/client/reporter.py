"""Reports the calls of this process's modules: how many there are, how long they take, and what they cost.

`record` puts a call on a queue and returns. The reporter's thread takes it from there and aggregates. About once a
second it sends the result to the writer daemon. `record` never waits and never raises, whatever goes wrong.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections import deque
from typing import Final

from dspy_registry.registry_store.errors import InvalidArgumentError, RegistryError
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.validation import is_time_limit
from dspy_registry.writer.client.pending_calls import NAMES_KEPT, Call, Names, Pending
from dspy_registry.writer.client.report_link import ReportLink

QUEUE_LENGTH: Final = 32_768
"""The most calls kept with their values between two rounds of the thread. Further calls are only counted."""
FLUSH_AT_EXIT: Final = 1.0
"""Seconds that a process waits at its end for the daemon to take the last calls."""
_ANSWER_TIMEOUT: Final = 5.0
_AT_ONCE: Final = 256
_BREATH: Final = 0.0002
_NO_NAME: Final = ""
"""Calls recorded under it are counted as lost."""

_log = logging.getLogger("dspy_registry")


class UsageReporter:
    """Reports calls to the writer daemon of the registry in `path` (None: $DSPY_REGISTRY, else the user's data folder).

    A batch is sent every `interval` seconds. While there is no daemon, calls are aggregated in bounded memory, and
    sent when a daemon is back. Threads may share a reporter, and after a fork it works in parent and child. At its end
    the process sends the last calls, and waits for that at most a second; `close` does so earlier. Raises
    InvalidArgumentError for an interval that is not above 0.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, interval: float = 1.0) -> None:
        self.path = registry_path(path)
        if not is_time_limit(interval):
            raise InvalidArgumentError(f"interval is {interval!r}, it must be a number of seconds above 0.")
        self._interval = min(interval, threading.TIMEOUT_MAX)
        self._queue: deque[Call] = deque()
        self._closed = False
        self._begin()
        _reporters.add(self)

    def __repr__(self) -> str:
        return f"UsageReporter({str(self.path)!r})"

    def _begin(self) -> None:
        """Start empty. In a forked child, the pending calls and the connection belong to the parent."""
        self._queue.clear()
        self._room = 0  # until the first call starts the thread: a process without calls has no thread
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # for all state but the queue; re-entered by a signal handler that records
        self._overflow: dict[Names, int] = {}  # calls by name that were only counted
        self._overflow_errors: dict[Names, int] = {}
        self._wake = threading.Event()
        self._round = threading.Condition()
        self._asked = self._answered = 0
        self._working = threading.Lock()
        self._id = os.urandom(16)
        self._number = 0
        self._pending = Pending()
        self._unsent: deque[tuple[int, bytes]] = deque()
        self._link = ReportLink(self.path)
        self._delivered = True

    # The request path

    def record(
        self,
        name: Names,
        duration_ms: float,
        ok: bool = True,
        input_chars: int | None = None,
        tokens_in: int = 0,
        tokens_out: int = 0,
        cost_usd: float | None = None,
    ) -> None:
        """Report that a call of a module has ended, after `duration_ms` milliseconds. Never waits, never raises.

        `name` is the module's registered name, or several possible names, best first. `ok` is False for a call that
        failed. `input_chars` is the length of the input in characters, None: not known. `tokens_in` and `tokens_out`
        are counts; 0 also stands for "not known". `cost_usd` is in US dollars, None: not known.
        """
        queue = self._queue
        if len(queue) < self._room:
            queue.append((name, duration_ms, ok, input_chars, tokens_in, tokens_out, cost_usd))
        else:
            try:
                with self._lock:
                    (self._overflow if ok else self._overflow_errors)[name] += 1
            except Exception:  # usually a KeyError: the name is new
                self._record_slowly((name, duration_ms, ok, input_chars, tokens_in, tokens_out, cost_usd))

    def _record_slowly(self, call: Call) -> None:
        """Record the first call of the process, or the first call of a module while the queue is full."""
        try:
            with self._lock:
                if self._thread is None and not self._closed:
                    self._queue.append(call)  # first: it is counted whatever happens to the thread
                    self._start()
                elif not self._closed:
                    counts = self._overflow if call[2] else self._overflow_errors
                    name = call[0] if len(counts) < NAMES_KEPT else _NO_NAME
                    counts[name] = counts.get(name, 0) + 1
        except Exception:  # this must never raise in the program, even for a name that cannot be a key
            with self._lock:
                self._overflow[_NO_NAME] = self._overflow.get(_NO_NAME, 0) + 1

    def _start(self) -> None:
        self._room = QUEUE_LENGTH
        self._thread = threading.Thread(target=self._run, name="dspy-registry usage", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: `flush` sends the last calls
            self._thread.start()
        _finish_with_multiprocessing()

    # The thread

    def _run(self) -> None:
        while not self._closed:
            self._wake.wait(self._interval)
            self._wake.clear()
            try:
                self._work(_ANSWER_TIMEOUT)
            except BaseException:  # a value may raise anything when it is read, and reporting must go on
                _log.exception("usage statistics could not be sent; they are sent with the next batch")

    def _work(self, timeout: float) -> None:
        """One round: aggregate the queue, send the batches, tell the waiting `flush` calls."""
        with self._round:
            asked = self._asked
        try:
            with self._working:
                self._delivered = False  # in case that anything below raises
                self._gather()
                self._delivered = self._send(timeout)
        finally:
            with self._round:
                self._answered = max(self._answered, asked)
                self._round.notify_all()

    def _gather(self) -> None:
        now = time.time_ns() // 1_000_000
        queue = self._queue
        for taken in range(len(queue)):  # a fixed number: the queue may be filled as fast as this empties it
            if taken % _AT_ONCE == _AT_ONCE - 1:
                time.sleep(_BREATH)  # lets the threads of the program run
            self._pending.add(queue.popleft(), now)
        with self._lock:
            succeeded, self._overflow = self._overflow, {}
            failed, self._overflow_errors = self._overflow_errors, {}
        for name, calls in succeeded.items():
            self._pending.add_counts(name, calls, 0, now)
        for name, calls in failed.items():
            self._pending.add_counts(name, calls, calls, now)

    def _send(self, timeout: float) -> bool:
        """Whether all batches were delivered. A batch keeps its number until then, so that it counts once."""
        if not self._unsent and self._pending:
            self._unsent.extend(self._pending.take(self._id, self._number + 1))
            self._number = self._unsent[-1][0]
        while self._unsent:
            try:
                refused = self._link.send(self._unsent[0][1], timeout)
            except RegistryError as error:
                _log.debug("usage statistics wait for the writer daemon: %s", error)
                return False
            if refused is not None:
                _log.warning("usage statistics were refused and are dropped: %s", refused)
            self._unsent.popleft()
        return not self._pending

    # The end

    def flush(self, timeout: float = FLUSH_AT_EXIT) -> bool:
        """Send all calls recorded so far. True: they were delivered within `timeout` seconds.

        When no daemon answers, this returns False at once. No call is lost by it.
        """
        thread = self._thread
        if thread is None:
            return True
        if not thread.is_alive():
            return self._flush_here(timeout)
        with self._round:
            self._asked += 1
            asked = self._asked
            self._wake.set()
            arrived = self._round.wait_for(lambda: self._answered >= asked, timeout)
        return arrived and self._delivered

    def _flush_here(self, timeout: float) -> bool:
        if self._working.acquire(timeout=timeout):
            self._working.release()
            self._work(timeout)
            return self._delivered
        return False

    def close(self, timeout: float = FLUSH_AT_EXIT) -> bool:
        """`flush`, then stop: later calls are ignored. Returns what `flush` did. Does nothing the second time."""
        if self._closed:
            return True
        delivered = self.flush(timeout)
        with self._lock:
            self._closed = True
            self._room = 0
        self._wake.set()
        self._link.close()
        return delivered

    def __enter__(self) -> UsageReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_reporters: weakref.WeakSet[UsageReporter] = weakref.WeakSet()


def _begin_in_child() -> None:
    for reporter in list(_reporters):
        reporter._link.close()
        reporter._begin()


def flush_all(timeout: float = FLUSH_AT_EXIT) -> bool:
    """Send the calls of every reporter of this process. True: all were delivered within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    delivered = [reporter.flush(max(0.0, deadline - time.monotonic())) for reporter in list(_reporters)]
    return all(delivered)


def _finish_with_multiprocessing() -> None:
    """A child of multiprocessing may end without atexit's handlers, but runs those of multiprocessing."""
    if "multiprocessing.util" in sys.modules:
        from multiprocessing import util  # another thread may be importing it: this waits until it is whole

        util.Finalize(None, flush_all, exitpriority=100)


os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(flush_all)
