"""Running one attempt: in a thread or as a task, for a bounded time, with a report of how it ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import CoroutineType, FunctionType
from typing import Any

from msgspec import Struct

from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.outcome_kinds import CALLER, CANCELLED, OK, TIMEOUT
from dspy_registry.registry_store.retry_after import retry_after_of
from dspy_registry.router.abandoned import Abandoned
from dspy_registry.router.admission import Admission, admit, admit_async
from dspy_registry.router.attempt import Attempt
from dspy_registry.router.course import Ended, Refused, Try
from dspy_registry.router.dspy_settings import is_streaming, within_time, within_time_async
from dspy_registry.router.threads import Job, threads
from dspy_registry.router.under_way import CallUnderWay
from dspy_registry.router.wanted import Wanted
from dspy_registry.writer.client.reporter import UsageReporter

_log = logging.getLogger("dspy_registry")


class Given(Struct, frozen=True):
    """What a routed call is given. `characters` of input; None: not known."""

    wanted: Wanted
    arguments: Mapping[str, Any]
    characters: int | None


class Calling:
    """Runs attempts and reports them. Threads and tasks may share it."""

    def __init__(self, registry: Registry, reporter: UsageReporter, classify: Callable[[BaseException], str]) -> None:
        self.registry = registry
        self.reporter = reporter
        self.classify = classify
        self.abandoned = Abandoned()

    def attempt(self, step: Try, given: Given) -> Ended | Refused:
        """An attempt, in a thread unless DSPy streams from this one."""
        found = given.wanted.target(step.candidate)
        if type(found) is Refused:
            return found
        target, version = found
        if _is_async(target):
            raise InvalidArgumentError(f"the target of {step.candidate.asked} must be awaited.", remedy="Use `acall`.")
        admission = admit(self.registry, step)
        if type(admission) is Refused:
            return admission
        if step.end is not None:
            begun = step.begun(time.monotonic())
            if begun is None:
                return _too_late(admission)
            step = begun
        call = CallUnderWay(step.candidate.name, target)
        report = _Report(self, step, given.characters, call, version, time.monotonic())
        # A copy of this context: `dspy.context` holds in the thread too, and nobody else sees the call under way.
        work = partial(copy_context().run, within_time, step.seconds, call, given.arguments)
        if "dspy" in sys.modules and is_streaming():
            return _in_this_thread(work, admission, report)
        return self._in_another_thread(InThread(work, admission), step.seconds, report)

    def _in_another_thread(self, call: InThread, seconds: float, report: _Report) -> Ended | Refused:
        try:
            is_done = call.is_made_within(seconds)
        except BaseException as error:  # KeyboardInterrupt, what a signal's handler raises, or there is no thread
            if not call.withdraw():
                call.abandon(self.abandoned)
                report.ended(None, error, CANCELLED)
            raise
        if is_done:
            return report.ended(call.value, call.error)
        if call.withdraw():
            return report.not_begun()
        call.abandon(self.abandoned)
        return report.timed_out()

    async def attempt_async(self, step: Try, given: Given) -> Ended | Refused:
        """An attempt: a task if the target can be awaited, else in a thread."""
        found = given.wanted.target(step.candidate)
        if type(found) is Refused:
            return found
        target, version = found
        admission = await admit_async(self.registry, step)
        if type(admission) is Refused:
            return admission
        begun = step.begun(time.monotonic())
        if begun is None:
            return _too_late(admission)
        step = begun
        call = CallUnderWay(step.candidate.name, target)
        report = _Report(self, step, given.characters, call, version, time.monotonic())
        future, job = _future(call, step.seconds, given.arguments, admission)
        try:
            await asyncio.wait({future}, timeout=step.seconds)
        except BaseException as error:
            if job is None or not job.withdraw():
                self._abandon(future)
                report.ended(None, error, CANCELLED)
            raise
        if future.done():
            return _told(future, report)
        if job is not None and job.withdraw():
            return report.not_begun()
        self._abandon(future)
        return report.timed_out()

    def _abandon(self, future: asyncio.Future[Any]) -> None:
        """Cancel it. Until it ends, it counts as abandoned; nobody waits for it."""
        self.abandoned.add(future)

        def ended(done: asyncio.Future[Any]) -> None:
            self.abandoned.ended(done)
            if not done.cancelled():
                done.exception()  # looked at, so that asyncio does not complain

        future.add_done_callback(ended)
        if isinstance(future, asyncio.Task):
            future.cancel()


class _Report(Struct, frozen=True):
    """How an attempt ended: told to the reporter, to the log, and to the course. `began` is on the monotonic clock."""

    calling: Calling
    step: Try
    characters: int | None
    call: CallUnderWay
    version: int
    began: float

    def not_begun(self) -> Refused:
        """Its time was over before a thread took the call: that says nothing about the module."""
        _log.debug("no thread took a call of %s within %.0f ms", self.call.name, self.step.seconds * 1000)
        return Refused(None)

    def timed_out(self) -> Ended:
        name, limit_ms = self.step.candidate.name, self.step.seconds * 1000
        return self.ended(None, TimeoutError(f"{name} did not end within {limit_ms:.0f} ms"), TIMEOUT)

    def ended(self, value: Any, error: BaseException | None, kind: str = "") -> Ended:
        """`kind` "": as the error says."""
        milliseconds = (time.monotonic() - self.began) * 1000
        call, limit_ms = self.call, self.step.seconds * 1000
        if type(value) is CoroutineType:  # nobody would run it, and the call would count as completed
            value.close()
            value, kind, error = None, CALLER, _not_awaited(call.name)
        kind = kind or (OK if error is None else self.calling.classify(error))
        # As `Attempt(…)`, without the call of a Python function that a named tuple makes.
        attempt = tuple.__new__(Attempt, (call.name, self.version, kind, milliseconds, limit_ms, error))
        self.calling.reporter.record(
            call.name,
            milliseconds,
            kind == OK,
            self.characters,
            call.tokens_in,
            call.tokens_out,
            call.cost_usd,
            error=None if kind == OK else kind,
            version=self.version,
            limit_ms=limit_ms,
            began=self.began,
            retry_after=None if error is None else retry_after_of(error, time.time()),
        )
        if _log.isEnabledFor(logging.DEBUG):
            _log.debug(
                "attempt of %s, version %d: %s after %.1f ms, limit %.0f ms%s",
                *attempt[:5],
                "" if error is None else f": {error!r}",
            )
        return Ended(attempt, value)


def _too_late(admission: Admission) -> Refused:
    admission.end()
    return Refused(None)


def _not_awaited(name: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the target of {name} returned a coroutine.", remedy="Give the async function itself, and use `acall`."
    )


class InThread(Job):
    """A call for which a thread waits."""

    _done: threading.Lock
    _abandoned: Abandoned | None = None
    _has_ended = False

    def is_made_within(self, seconds: float) -> bool:
        """Make the call in another thread. Returns whether it ended within this time."""
        done = self._done = threading.Lock()
        done.acquire()
        threads.start(self)
        # Not by keyword: a function of C finds its keywords slowly, which took as long as all the rest of a free lock.
        return done.acquire(True, min(seconds, threading.TIMEOUT_MAX))

    def abandon(self, among: Abandoned) -> None:
        """Let it run on. Until it ends, it counts among the abandoned ones."""
        self._abandoned = among  # first: whichever of the two threads is later takes it out again
        among.add(self)
        if self._has_ended:
            among.ended(self)

    def tell(self) -> None:
        self._has_ended = True
        if self._abandoned is not None:
            self._abandoned.ended(self)
        self._done.release()


class _ForTask(Job):
    """A call for which a task waits. Cancelling `future` does not end the call."""

    def __init__(self, work: Callable[[], Any], admission: Admission) -> None:
        super().__init__(work, admission)
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self._loop.create_future()

    def start(self) -> None:
        """Make the call in another thread."""
        try:
            threads.start(self)
        except BaseException:
            self.withdraw()
            raise

    def tell(self) -> None:
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self.future.done():
            return
        if self.error is None:
            self.future.set_result(self.value)
        elif isinstance(self.error, StopIteration):  # a future refuses it
            self.future.set_exception(RuntimeError("the call raised StopIteration"))
        else:
            self.future.set_exception(self.error)


def _as_task(coroutine: Any, admission: Admission) -> asyncio.Task[Any]:
    try:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(coroutine)
    except BaseException:
        admission.end()
        raise
    task.add_done_callback(lambda done: admission.end(not done.cancelled() and done.exception() is None))
    return task


def _in_this_thread(work: Callable[[], Any], admission: Admission, report: _Report) -> Ended:
    is_done = False
    try:
        value = work()
        is_done = True
    except Exception as error:
        return report.ended(None, error)
    except BaseException as error:
        report.ended(None, error, CANCELLED)
        raise
    finally:
        admission.end(is_done)
    return report.ended(value, None)


def _future(
    call: CallUnderWay, seconds: float, arguments: Mapping[str, Any], admission: Admission
) -> tuple[asyncio.Future[Any], Job | None]:
    """What gives the value of a call: a task if the target can be awaited, else a thread, and the job for it."""
    awaited = awaitable(call.target)
    if awaited is not None:
        return _as_task(within_time_async(seconds, call, awaited, arguments), admission), None
    job = _ForTask(partial(copy_context().run, within_time, seconds, call, arguments), admission)
    job.start()
    return job.future, job


def _told(done: asyncio.Future[Any], report: _Report) -> Ended | Refused:
    if done.cancelled():
        return report.ended(None, asyncio.CancelledError(), CANCELLED)
    failure = done.exception()
    return report.ended(None if failure is not None else done.result(), failure)


def awaitable(target: Callable[..., Any]) -> Callable[..., Any] | None:
    """What to await for this target: itself, or `acall` of a program of DSPy. None: it cannot be awaited."""
    if _is_async(target):
        return target
    acall = getattr(target, "acall", None)
    return acall if acall is not None and callable(getattr(target, "aforward", None)) else None


def _is_async(target: Callable[..., Any]) -> bool:
    if type(target) is FunctionType and not target.__dict__:  # six times as quick; a mark would be in the dict
        return bool(target.__code__.co_flags & inspect.CO_COROUTINE)
    return inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None))  # noqa: B004
