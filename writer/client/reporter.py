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
from pathlib import Path
from typing import Any, Final

from dspy_registry.registry_store.boot_clock import clocks
from dspy_registry.registry_store.errors import InvalidArgumentError, NoHomeError
from dspy_registry.registry_store.own_place import own_place
from dspy_registry.registry_store.paths import registry_path
from dspy_registry.registry_store.validation import is_time_limit
from dspy_registry.writer.client.bell import Bell
from dspy_registry.writer.client.health_teller import HealthTeller, Pace
from dspy_registry.writer.client.outbox import Outbox
from dspy_registry.writer.client.pending_calls import NAMES_KEPT, Pending
from dspy_registry.writer.client.recorded_call import Call, Names, moment_at, plain_name
from dspy_registry.writer.client.rounds import Rounds, Sent
from dspy_registry.writer.client.told_calls import NO_ROOM, ToldCalls

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
        self._closed = False
        self._has_folder = True
        self.path = self._folder_or_none(path)
        if not is_time_limit(interval):
            raise InvalidArgumentError(f"interval is {interval!r}, it must be a number of seconds above 0.")
        self._interval = min(interval, threading.TIMEOUT_MAX)
        self._place = own_place(self.path)
        self._told = ToldCalls(self._place)
        self._queue, self._room = self._told.queue, self._told.room
        self._begin()
        _reporters.add(self)

    def __repr__(self) -> str:
        return f"UsageReporter({str(self.path)!r})"

    def _folder_or_none(self, path: str | os.PathLike[str] | None) -> Path:
        """The registry's folder. Without a home directory there is none: that is told, and calls are ignored."""
        try:
            return registry_path(path)
        except NoHomeError as error:
            _log.warning("no calls are reported: %s %s", error.message, error.remedy)
            self._closed, self._has_folder = True, False
            return Path(path or "~")

    def _begin(self) -> None:
        """Start empty. In a forked child, the pending calls and the connection belong to the parent."""
        self._told.begin()  # no room until the first call starts the thread: a process without calls has no thread
        self._thread: threading.Thread | None = None
        self._lock = threading.RLock()  # for all state but the queue; re-entered by a signal handler that records
        # Calls that were only counted: those that succeeded by name, the others by name, `ok` and `error` as they came.
        self._overflow: dict[Names, int] = {}
        self._overflow_failed: dict[tuple[Names, Any, Any], int] = {}
        self._wake = Bell()
        self._failed = Bell()
        self._hurries: threading.Thread | None = None  # until the first failure: a process without any has none
        self._rounds = Rounds()
        self._working = threading.Lock()
        self._gathering = threading.Lock()
        self._pending = Pending()
        self._outbox = Outbox(self.path)
        self._teller = HealthTeller(self.path, self._place.health)
        self._gathered_at = _milliseconds()

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
        # Give these by name. They are not keyword-only, because filling those in takes as long as a quarter of all.
        error: str | None = None,
        version: int = 0,
        limit_ms: float | None = None,
        began: float | None = None,
        retry_after: float | None = None,
    ) -> None:
        """Report that a call of a module has ended, after `duration_ms` milliseconds. Never waits, never raises.

        `name` is the module's registered name, or several possible names, best first. `ok` is False for a call that
        failed. `input_chars` is the length of the input in characters, None: not known. `tokens_in` and `tokens_out`
        are counts; 0 also stands for "not known". `cost_usd` is in US dollars, None: not known.

        `error` is the kind of outcome (`timeout`, `rate_limited`, `unavailable`, `error`, `invalid_output`, `caller`,
        `cancelled`); None: as `ok` says. `version` is the module's version that was called, 0: the one in force when
        the call began. `limit_ms` is the limit that the caller enforced, in milliseconds; None: a call that timed out
        is taken to have had its duration as its limit. `began` is when the call began, as `time.monotonic()` told it;
        None: its duration ago. `retry_after` is how many seconds the provider asked to wait, None: it did not.
        """
        try:
            refused = self._room.pop()(
                (  # flat: a second tuple within it would take as long again
                    name,
                    duration_ms,
                    ok,
                    input_chars,
                    tokens_in,
                    tokens_out,
                    cost_usd,
                    error,
                    version,
                    limit_ms,
                    began,
                    retry_after,
                )
            )
            if refused is None:
                if error is not None or ok is not True:
                    self._hurry()
                return
            self._room.append(NO_ROOM)
        except IndexError:
            self._room.append(NO_ROOM)  # to be found by the next call of a flood: an exception takes longer
        try:
            with self._lock:
                if ok is True and error is None:
                    self._overflow[name] += 1
                else:
                    self._overflow_failed[name, ok, error] += 1
        except Exception:  # usually a KeyError: the name is new
            told = (duration_ms, ok, input_chars, tokens_in, tokens_out, cost_usd, error, version, limit_ms, began)
            self._record_slowly((name, *told, retry_after))

    def _record_slowly(self, call: Call) -> None:
        """Record the first call of the process, or the first call of a module while the queue is full."""
        try:
            with self._lock:
                if not self._told.is_open and not self._closed:
                    self._queue.append(call)  # first: it is counted whatever happens to the thread
                    self._start()
                    if call[7] is not None or call[2] is not True:
                        self._hurry()
                elif not self._closed:
                    self._count_only(call[0], call[2], call[7])
        except Exception:  # a call must not raise in the program, not even for a name that cannot be a key
            with self._lock:
                self._overflow[_NO_NAME] = self._overflow.get(_NO_NAME, 0) + 1

    def _count_only(self, name: Names, ok: Any, error: Any) -> None:
        if ok is True and error is None:
            name = name if len(self._overflow) < NAMES_KEPT else _NO_NAME
            self._overflow[name] = self._overflow.get(name, 0) + 1
        else:
            outcome = (name, ok, error) if len(self._overflow_failed) < NAMES_KEPT else (_NO_NAME, False, None)
            self._overflow_failed[outcome] = self._overflow_failed.get(outcome, 0) + 1

    def _start(self) -> None:
        """Each step comes before what would make the next call leave it out: a signal's handler may raise anywhere."""
        thread = threading.Thread(target=self._run, name="dspy-registry usage", daemon=True)
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: `flush` sends the last calls
            thread.start()
        self._thread = thread
        _finish_with_multiprocessing()
        self._told.open(QUEUE_LENGTH - len(self._queue))

    def _hurry(self) -> None:
        """A call may have failed: other processes must know soon."""
        self._failed.ring()
        if self._hurries is None:
            self._start_to_hurry()

    def _start_to_hurry(self) -> None:
        with contextlib.suppress(Exception), self._lock:  # without the thread, failures go with the next batch
            if self._hurries is None and not self._closed:
                thread = threading.Thread(target=self._run_ahead, name="dspy-registry health", daemon=True)
                thread.start()  # before it is known: an interrupt in between must not leave one that never began
                self._hurries = thread

    # The threads

    def _run_ahead(self) -> None:
        """Tell of failures at once: the other thread may be waiting until its batch is durable."""
        pace = Pace()
        while not self._closed:
            self._failed.wait(threading.TIMEOUT_MAX)
            time.sleep(pace.pause())
            try:
                self._gather()
                self._tell_outcomes(everything=False)
            except BaseException:
                _log.exception("failures could not be told; they are told with the next batch")

    def _tell_outcomes(self, *, everything: bool) -> None:
        with self._gathering:
            outcomes = self._teller.outcomes.take(everything=everything)
        self._teller.tell(outcomes)

    def _run(self) -> None:
        try:
            while not self._closed:
                self._wake.wait(self._interval)
                self._work_or_tell()
        finally:
            self._rounds.finish()

    def _work_or_tell(self) -> None:
        try:
            self._work(_ANSWER_TIMEOUT)
        except BaseException:  # a value may raise anything when it is read, and reporting must go on
            _log.exception("usage statistics could not be sent; they are sent with the next batch")

    def _work(self, timeout: float, patience: float = -1) -> None:
        """One round: aggregate the queue, send the batches, tell the waiting `flush` calls.

        `patience` is how many seconds it waits for another thread's round, -1: without a limit.
        """
        if not self._working.acquire(timeout=patience):
            return
        try:
            asked, sent = self._rounds.asked, Sent.REFUSED
            try:
                self._gather()
                self._tell_outcomes(everything=True)
                sent = self._outbox.send(self._take, timeout)
            finally:
                self._rounds.end(asked, sent)  # within: rounds must end in their order
        finally:  # an interrupt of the line before must not leave it taken
            self._working.release()
            if self._closed:
                self._disconnect()

    def _disconnect(self) -> None:
        """End the connection of a closed reporter. A thread that uses it ends it after its round."""
        if self._working.acquire(blocking=False):
            try:
                self._outbox.close()
            finally:
                self._working.release()

    def _gather(self) -> None:
        with self._gathering:
            self._gather_alone()

    def _gather_alone(self) -> None:
        now = clocks()
        moment = moment_at(now, before=self._gathered_at)
        for taken in range(len(self._told)):  # a fixed number: the queue may be filled as fast as this empties it
            if taken % _AT_ONCE == _AT_ONCE - 1:
                time.sleep(_BREATH)  # lets the threads of the program run
            call = self._told.pop()
            read = self._pending.add(call, moment)
            if read is not None:
                self._teller.outcomes.add(plain_name(call[0]), read, now.boot)
        self._gathered_at = moment.now
        with self._lock:
            succeeded, self._overflow = self._overflow, {}
            failed, self._overflow_failed = self._overflow_failed, {}
        for name, calls in succeeded.items():
            self._pending.add_counts(name, True, None, calls, moment.now)
        for (name, ok, error), calls in failed.items():
            self._pending.add_counts(name, ok, error, calls, moment.now)

    def _take(self, reporter: bytes, number: int) -> list[tuple[int, bytes]]:
        with self._gathering:
            return self._pending.take(reporter, number)

    # The end

    def flush(self, timeout: float = FLUSH_AT_EXIT) -> bool:
        """Send all calls recorded so far. True: they were delivered within `timeout` seconds.

        When there is no daemon, this returns False at once. No call is lost by it.
        """
        return self._answered(self._ask(), time.monotonic() + timeout)

    def _ask(self) -> int:
        """Have the thread make a round. Returns the number of this request."""
        if self._thread is None:
            return 0
        request = self._rounds.ask()
        self._wake.ring()
        return request

    def _answered(self, request: int, until: float) -> bool:
        """Whether all was delivered before `until`. A round that a busy daemon did not answer in time is repeated."""
        while True:
            sent = self._sent(request, until)
            if sent is not Sent.NOT_IN_TIME or time.monotonic() >= until:
                return sent is Sent.ALL
            request = self._ask()

    def _sent(self, request: int, until: float) -> Sent | None:
        """How the round ended that answers this request. None: it has not. After the thread's end, it is made here."""
        thread = self._thread
        if thread is None:
            return Sent.ALL if self._has_folder else Sent.REFUSED
        sent = self._rounds.wait(request, _left(until)) if thread.is_alive() else None
        if sent is None and (self._rounds.are_over or not thread.is_alive()):
            self._work(_left(until), patience=_left(until))
            sent = self._rounds.wait(request, 0)
        return sent

    def close(self, timeout: float = FLUSH_AT_EXIT) -> bool:
        """`flush`, then stop: later calls are ignored. Returns what `flush` did. Does nothing the second time."""
        if self._closed:
            return True
        delivered = self.flush(timeout)
        with self._lock:
            self._closed = True
            self._told.close()
        self._wake.ring()
        self._failed.ring()
        self._disconnect()
        self._teller.close()
        return delivered

    def __enter__(self) -> UsageReporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


def _left(until: float) -> float:
    return min(max(0.0, until - time.monotonic()), threading.TIMEOUT_MAX)


_reporters: weakref.WeakSet[UsageReporter] = weakref.WeakSet()


def _begin_in_child() -> None:
    for reporter in list(_reporters):
        reporter._outbox.close()
        reporter._teller.leave_to_parent()
        reporter._begin()


def flush_all(timeout: float = FLUSH_AT_EXIT) -> bool:
    """Send the calls of every reporter of this process. True: all were delivered within `timeout` seconds."""
    until = time.monotonic() + timeout
    asked = [(reporter, reporter._ask()) for reporter in list(_reporters)]  # all first: their threads send at once
    delivered = [reporter._answered(request, until) for reporter, request in asked]
    return all(delivered)


def _finish_with_multiprocessing() -> None:
    """A child of multiprocessing may end without atexit's handlers, but runs those of multiprocessing."""
    # While another thread imports it, it is there without its content; then this process is no such child.
    finalize = getattr(sys.modules.get("multiprocessing.util"), "Finalize", None)
    if finalize is not None:
        finalize(None, flush_all, exitpriority=100)


os.register_at_fork(after_in_child=_begin_in_child)
atexit.register(flush_all)
