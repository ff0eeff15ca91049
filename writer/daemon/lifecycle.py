"""The writer daemon: opens the registry, serves clients over a Unix socket, commits in groups.

Further parts of the product join in through the hooks of `Daemon`:

    submit         change the registry from inside, through the same group commit as clients
    add_task       run a coroutine for as long as the daemon runs
    add_section    add something to what the status request says
    usage_sink     take in the batches of usage that clients report (`collect_usage` does)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from dspy_registry.registry_store.errors import RegistryError, StoreError
from dspy_registry.registry_store.paths import registry_path, socket_path
from dspy_registry.registry_store.protocol import DaemonStatus
from dspy_registry.writer.daemon import socket_file
from dspy_registry.writer.daemon.file_guard import FileGuard
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.group_commit import GroupCommit
from dspy_registry.writer.daemon.limits import Limits
from dspy_registry.writer.daemon.maintenance import upkeep
from dspy_registry.writer.daemon.reply_cache import Answered
from dspy_registry.writer.daemon.server import Server
from dspy_registry.writer.daemon.usage_sink import collect_usage
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.store import Store

T = TypeVar("T")
Extension = Callable[["Daemon"], None]

_FILES_OF_ITS_OWN = 200
_LOOK = "Look for disk errors in the system log."

_log = logging.getLogger("dspy_registry")


@dataclass(frozen=True)
class Submitted(Generic[T]):
    """What came of a `submit`: the revision in which it is visible, and what the stage returned."""

    revision: int
    result: T


class Daemon:
    """A registry's writer daemon. `run` blocks until it is told to stop.

    `path` is the registry's folder, created and seeded if need be; None means $DSPY_REGISTRY, else the user's data
    directory. `group` (name or number) admits the members of a Unix group beside this user and root; None admits
    no one else. `extensions` are called with the daemon, in its loop, before it accepts clients: there they use
    the hooks. Raises InvalidArgumentError when the path is too long for a socket or the group does not exist.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        group: str | int | None = None,
        limits: Limits | None = None,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self.folder = registry_path(path)
        self.socket_path = socket_path(self.folder)
        self.usage_sink: Callable[[bytes], asyncio.Future[int] | None] | None = None
        """Called in the loop's thread with each batch of usage, as the client packed it. May raise RegistryError;
        must not block: merge with `submit`. The client is answered at once, or when the future that it returns
        has the revision. None: reports are refused."""
        self._group = socket_file.group_id(group)
        self._limits = limits or Limits()
        self._extensions = tuple(extensions)
        self._sections: dict[str, Callable[[], Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._store: Store | None = None
        self._queue: GroupCommit | None = None
        self._server: Server | None = None
        self._stop: asyncio.Event | None = None
        self._failure: StoreError | None = None
        self._started = 0.0

    def __repr__(self) -> str:
        return f"Daemon({str(self.folder)!r}, {self._queue or 'not running'})"

    # Running

    def run(self, ready: Callable[[Daemon], None] | None = None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, then finish what was accepted.

        `ready` is called once clients can connect. Signals are listened to in the main thread only. Raises
        WriterLockedError when there is another writer, StoreError when the registry cannot be opened, and when the
        disk fails or the files are taken away: then nothing more may be written, and it must be started anew.
        """
        with contextlib.closing(Store(self.folder, self._group)) as self._store:
            _allow_files(self._limits.connections + _FILES_OF_ITS_OWN)
            asyncio.run(self._serve(ready))
        if self._failure is not None:
            raise StoreError(
                f"the writer daemon has stopped, because it can write no more: {self._failure.message}",
                remedy=f"{self._failure.remedy or _LOOK} Run `dspy-registry check`, then start the daemon again.",
            ) from self._failure

    def stop(self) -> None:
        """Make `run` finish what was accepted and return. From any thread; does nothing when it is not running."""
        loop, event = self._loop, self._stop
        if loop is not None and event is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(event.set)

    # Hooks

    @property
    def store(self) -> Store:
        """The open registry. Only while the daemon runs."""
        if self._store is None:
            raise RegistryError("the writer daemon is not running.")
        return self._store

    @property
    def queue(self) -> GroupCommit:
        """The commit queue. Only while the daemon runs."""
        if self._queue is None:
            raise RegistryError("the writer daemon is not running.")
        return self._queue

    @property
    def revision(self) -> int:
        """The newest revision that the daemon has committed. Only while it runs; costs nothing."""
        return self.queue.revision

    async def submit(self, stage: Callable[[Draft], T]) -> Submitted[T]:
        """Commit a change of the daemon's own, in a group with whatever clients have sent.

        `stage` is called in the commit thread, with a draft over all that was accepted before; possibly more than
        once, so it must not depend on having been called before. What it raises is raised here, and nothing of it
        is changed. Returns when the change is durable and visible. Only in the daemon's loop.
        """
        work = _LocalWork(stage, asyncio.get_running_loop().create_future())
        self.queue.put(work)
        return await work.future

    def add_task(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine, named by what makes it, until it ends or the daemon stops. Only in the daemon's loop.

        At the stop it is cancelled before the queue is closed, so that it may still `submit` in a `finally`. An
        exception that it does not handle is logged and ends it alone.
        """
        task = asyncio.get_running_loop().create_task(self._guarded(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def add_section(self, name: str, provider: Callable[[], Any]) -> None:
        """Let the status say something more: what `provider` returns (plain values), called in the loop's thread."""
        self._sections[name] = provider

    def status(self) -> DaemonStatus:
        """The state of the daemon: its pid, revision, queue lengths and errors. Only while it runs, in its loop."""
        queue, server = self.queue, self._server
        return DaemonStatus(
            pid=os.getpid(),
            revision=queue.revision,
            uptime=time.monotonic() - self._started,
            connections=len(server.connections) if server else 0,
            queued=queue.queued,
            requests=queue.requests,
            groups=queue.groups,
            sections={name: _told(name, provider) for name, provider in self._sections.items()},
        )

    # Within the loop

    async def _serve(self, ready: Callable[[Daemon], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started = time.monotonic()
        self._listen_to_signals()
        self._queue = GroupCommit(
            self.store.committer, Answered.load(self.store.environment), self._limits, self._failed
        )
        self._server = server = Server(
            self.socket_path, self._queue, self._limits, self._group, self.status, self._take_usage
        )
        file_guard = FileGuard(self.folder)
        try:
            for extension in (collect_usage, *self._extensions):
                extension(self)
            await server.listen()
            self.add_task(lambda: upkeep(server, self.store.environment, file_guard, self._failed))
            if ready is not None:
                ready(self)
            await self._stop.wait()
        finally:
            await self._shut_down(server, self._queue)

    def _listen_to_signals(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(number, self.stop)

    async def _shut_down(self, server: Server, queue: GroupCommit) -> None:
        """Accept no more, answer what was accepted, let go: in this order."""
        server.stop_accepting()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await queue.stop()
        await server.close()
        self._queue = None

    async def _guarded(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await coroutine()
        except Exception:
            _log.exception("a task of the writer daemon failed: %s", coroutine)

    def _take_usage(self, batch: bytes) -> asyncio.Future[int] | None:
        if self.usage_sink is None:
            raise RegistryError("this writer daemon takes no reports of usage.")
        return self.usage_sink(batch)

    def _failed(self, error: StoreError) -> None:
        _log.critical("nothing more is written: %s", error)
        self._failure = self._failure or error
        self.stop()


class _LocalWork(Work, Generic[T]):
    """A change of the daemon's own."""

    def __init__(self, stage: Callable[[Draft], T], future: asyncio.Future[Submitted[T]]) -> None:
        self._stage = stage
        self._result: T
        self.future = future

    def stage(self, draft: Draft) -> None:
        self._result = self._stage(draft)

    def success(self, revision: int) -> Submitted[T]:
        return Submitted(revision, self._result)

    def failure(self, error: BaseException) -> BaseException:
        return error

    def settle(self, answer: Submitted[T] | BaseException) -> None:
        if self.future.done():
            return
        if isinstance(answer, BaseException):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files, as far as it may: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _told(name: str, provider: Callable[[], Any]) -> Any:
    try:
        return provider()
    except Exception as error:
        _log.exception("section %s of the status failed", name)
        return {"error": f"{type(error).__name__}: {error}"}


def serve(
    path: str | os.PathLike[str] | None = None,
    *,
    ready: Callable[[Daemon], None] | None = None,
    group: str | int | None = None,
    limits: Limits | None = None,
    extensions: Sequence[Extension] = (),
) -> None:
    """Run a writer daemon until a signal; see `Daemon` and `Daemon.run`. Prints nothing; logs as "dspy_registry"."""
    Daemon(path, group=group, limits=limits, extensions=extensions).run(ready)
