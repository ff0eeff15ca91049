"""Limits for asyncio: a task that waits blocks neither its loop nor a thread of an executor.

For each limit that tasks of this process wait for, one thread waits and tells all these tasks. It ends with the last.
No thread ever takes a lease. A task does so in its loop, so that a cancelled task has nothing to give back.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType

from dspy_registry.readers.lease_regions import LONGEST_WAIT, Region
from dspy_registry.readers.limits import LimitedCall, Patience
from dspy_registry.registry_store.futex import FutexWord


class AsyncLimitedCall:
    """A `LimitedCall` for the length of an `async with`."""

    def __init__(self, call: LimitedCall) -> None:
        self._call = call

    async def __aenter__(self) -> AsyncLimitedCall:
        try:
            blocked = self._call.try_to_begin()
            if blocked is not None:
                await self._wait(blocked)
            return self
        except BaseException:
            self._call.end()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._call.end()

    async def _wait(self, blocked: Region) -> None:
        patience = Patience(self._call)
        loop = asyncio.get_running_loop()
        try:
            while True:
                bell = _bell_of(blocked)
                blocked.listen()
                rung = bell.listen(loop)  # before the try: a call that is given back after the try rings the bell
                try:
                    blocked.file.sweep()
                    now_blocked = self._call.try_to_begin()
                    if now_blocked is None:
                        return
                    seconds = patience.seconds(now_blocked)
                    if now_blocked is blocked:
                        await asyncio.wait((rung,), timeout=seconds)
                    blocked = now_blocked
                finally:
                    bell.leave(rung)
        except BaseException:
            blocked.tell()  # its thread may have been woken instead of another waiter
            raise


class _Bell:
    """Rings for all tasks that listen when a limit's word changes."""

    def __init__(self, word: FutexWord) -> None:
        self._word = word
        self._lock = threading.Lock()
        self._listening: dict[asyncio.Future[None], asyncio.AbstractEventLoop] = {}
        self._thread: threading.Thread | None = None

    def listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        """A future that is done when the word has changed since, or for no reason."""
        future = loop.create_future()
        with self._lock:
            self._listening[future] = loop
            if self._thread is None:
                seen = self._word.value
                self._thread = threading.Thread(target=self._ring, args=(seen,), name="registry-limit", daemon=True)
                self._thread.start()
        return future

    def leave(self, future: asyncio.Future[None]) -> None:
        """Stop listening."""
        with self._lock:
            self._listening.pop(future, None)
        future.cancel()

    def _ring(self, seen: int) -> None:
        word = self._word
        idle = False
        while True:
            word.wait(seen, LONGEST_WAIT)
            before, seen = seen, word.value
            with self._lock:
                if not self._listening and idle:
                    self._thread = None
                    return
                idle = not self._listening
                told = list(self._listening.items()) if seen != before else []
            for future, loop in told:
                _tell(future, loop)


def _tell(future: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.call_soon_threadsafe(_finish, future)
    except RuntimeError:  # its loop was closed
        return


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _bell_of(region: Region) -> _Bell:
    bell: _Bell = region.__dict__.setdefault("bell", _Bell(region.word))  # atomic: two threads get the same bell
    return bell
