"""The writer daemon: opens the registry, serves clients over a Unix socket, commits in groups.

Extensions use it only through `host.Host`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import msgspec

from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import NoReaderSlotError, RegistryError, StoreError
from dspy_registry.registry_store.paths import registry_path, socket_path
from dspy_registry.registry_store.protocol import DaemonStatus, HealthRequest
from dspy_registry.writer.daemon import socket_file
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.group_commit import Committed, GroupCommit
from dspy_registry.writer.daemon.health import keep_health
from dspy_registry.writer.daemon.host import Health, LocalWork, Steering, Submitted
from dspy_registry.writer.daemon.laggards import Laggards
from dspy_registry.writer.daemon.maintenance import FileGuard, maintain
from dspy_registry.writer.daemon.reply_cache import ReplyCache
from dspy_registry.writer.daemon.roles import Groups
from dspy_registry.writer.daemon.rollouts import keep_rollouts
from dspy_registry.writer.daemon.server import Server
from dspy_registry.writer.daemon.service import Service
from dspy_registry.writer.daemon.service_manager import ServiceManager
from dspy_registry.writer.daemon.usage_sink import collect_usage
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.member import refuse_member
from dspy_registry.writer.store import Store

T = TypeVar("T")
Extension = Callable[["Daemon"], None]

_FILES_BESIDE_CONNECTIONS = 200
_SLOT_PAUSE = 0.1  # seconds
_SWITCH_SECONDS = 0.0005  # a tenth of Python's own: so long the loop waits for a commit thread that computes
_LOOK = "Look for disk errors in the system log."

_log = logging.getLogger("dspy_registry")


class Daemon:
    """A registry's writer daemon, which is the `Host` of its extensions. `run` blocks until it is told to stop.

    `path` is the registry's folder; a missing registry is created. None means $DSPY_REGISTRY, else the user's data
    directory. `group` (name or number) admits the members of a Unix group beside this user and root; `report_group`
    admits a group to reporting only. None admits no group. What the daemon creates belongs to the report group if there
    is one, so members of `group` must be members of it too. `extensions` are called with the daemon, in its loop,
    before it accepts clients.
    Raises InvalidArgumentError when the path is too long for a socket or the group does not exist.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        group: str | int | None = None,
        report_group: str | int | None = None,
        bounds: Bounds | None = None,
        extensions: Sequence[Extension] = (),
    ) -> None:
        self.folder = registry_path(path)
        self.socket_path = socket_path(self.folder)
        self.usage_sink: Callable[[bytes], asyncio.Future[int] | None] | None = None
        self.change_taker: Callable[[Work], bool] | None = None
        self.health_sink: Callable[[HealthRequest], None] | None = None
        self.health: Health | None = None
        self.steering: Steering | None = None
        self._groups = Groups(*socket_file.group_ids(group, report_group))
        self._bounds = bounds or Bounds()
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
        self._manager = ServiceManager()

    def __repr__(self) -> str:
        return f"Daemon({str(self.folder)!r}, {self._queue or 'not running'})"

    # Running

    def run(self, ready: Callable[[Daemon], None] | None = None) -> None:
        """Serve until SIGTERM, SIGINT or `stop`, then finish what was accepted.

        `ready` is called once clients can connect. Signals are handled in the main thread only. Raises
        WriterLockedError when there is another writer, and StoreError when the registry cannot be opened. It also
        raises StoreError when the disk fails or the files are taken away: then a new daemon must be started.
        """
        with contextlib.closing(self._opened()) as self._store:
            _allow_files(self._bounds.connections + _FILES_BESIDE_CONNECTIONS)
            asyncio.run(self._serve(ready))
        if self._failure is not None:
            raise StoreError(
                f"the writer daemon has stopped, because it cannot write any longer: {self._failure.message}",
                remedy=f"{self._failure.remedy or _LOOK} Run `dspy-registry check`, then start the daemon again.",
            ) from self._failure

    def _opened(self) -> Store:
        """The open registry. While no reader slot is free, it is tried again: a restart would meet the same."""
        deadline = time.monotonic() + self._bounds.slot_patience
        is_told = False
        while True:
            try:
                return Store(self.folder, self._groups.of_files)
            except NoReaderSlotError as error:
                if time.monotonic() >= deadline:
                    raise
                if not is_told:
                    _log.warning("waiting up to %.0f s for a reader slot: %s", self._bounds.slot_patience, error)
                is_told = True
            time.sleep(_SLOT_PAUSE)

    def stop(self) -> None:
        """Make `run` finish what was accepted and return. Any thread may call it. Does nothing when it does not run."""
        loop, event = self._loop, self._stop
        if loop is not None and event is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(event.set)

    # What extensions use: see `Host`

    @property
    def store(self) -> Store:
        """The open registry. Only while the daemon runs."""
        if self._store is None:
            raise RegistryError("the writer daemon is not running.")
        return self._store

    @property
    def environment(self) -> Environment:
        """See `Host.environment`."""
        return self.store.environment

    @property
    def files_group(self) -> int | None:
        """See `Host.files_group`."""
        return self._groups.of_files

    @property
    def queue(self) -> GroupCommit:
        """The commit queue. Only while the daemon runs."""
        if self._queue is None:
            raise RegistryError("the writer daemon is not running.")
        return self._queue

    @property
    def revision(self) -> int:
        """See `Host.revision`."""
        return self.queue.revision

    def observe_commits(self, observer: Callable[[Committed], None]) -> None:
        """See `Host.observe_commits`."""
        self.queue.observers.append(observer)

    async def submit(self, stage: Callable[[Draft], T], *, is_background: bool = False) -> Submitted[T]:
        """See `Host.submit`."""
        work = LocalWork(stage, asyncio.get_running_loop().create_future(), is_background=is_background)
        self.queue.put(work)
        return await work.future

    def add_task(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """See `Host.add_task`."""
        task = asyncio.get_running_loop().create_task(self._guarded(coroutine))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def reloading(self) -> AbstractContextManager[None]:
        """See `Host.reloading`."""
        return self._manager.reloading()

    def add_section(self, name: str, provider: Callable[[], Any]) -> None:
        """See `Host.add_section`."""
        self._sections[name] = provider

    def status(self) -> DaemonStatus:
        """The state of the daemon: its pid, revision, queue lengths and errors. Only while it runs, in its loop."""
        queue, server = self.queue, self._server
        return DaemonStatus(
            pid=os.getpid(),
            revision=queue.revision,
            uptime=time.monotonic() - self._started,
            connections=server.connection_count if server else 0,
            queued=queue.queued,
            requests=queue.requests,
            groups=queue.groups,
            hanging=queue.is_hanging,
            sections={name: _section(name, provider) for name, provider in self._sections.items()},
        )

    # Within the loop

    async def _serve(self, ready: Callable[[Daemon], None] | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._started = time.monotonic()
        self._listen_to_signals()
        replies = ReplyCache.load(self.environment)
        self._queue = GroupCommit(self.store.committer, replies, self._bounds, self._failed)
        service = Service(self._queue, self._bounds, self._groups, self.status, self._take_usage, self._take_health)
        service.take_change = self._take_change
        self._server = server = Server(self.socket_path, service)
        file_guard = FileGuard(self.folder)
        laggards = Laggards()
        self.add_section("readers", lambda: _readers(laggards, self.environment))
        try:
            for extension in (collect_usage, keep_health, keep_rollouts, *self._extensions):
                extension(self)
            if self.change_taker is None:
                refuse_member(self.environment)
            await server.listen()
            self.add_task(lambda: maintain(server, self.environment, file_guard, laggards, self._failed))
            queue = self._queue
            self.add_task(lambda: self._manager.watch(lambda: not queue.is_hanging))
            self._manager.ready()
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
        """Accept no more, answer what was accepted, close: in this order."""
        self._manager.stopping()
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

    def _take_change(self, request: Work) -> bool:
        return self.change_taker is not None and self.change_taker(request)

    def _take_health(self, request: HealthRequest) -> None:
        if self.health_sink is None:
            raise RegistryError("this writer daemon does not keep the health of modules.")
        self.health_sink(request)

    def _failed(self, error: StoreError) -> None:
        _log.critical("nothing more is written: %s", error)
        self._failure = self._failure or error
        self.stop()


def _allow_files(count: int) -> None:
    """Raise this process's limit of open files as far as permitted: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _readers(laggards: Laggards, environment: Environment) -> list[dict[str, Any]]:
    return [msgspec.structs.asdict(holder) for holder in laggards.holders(*environment.reader_slots())]


def _section(name: str, provider: Callable[[], Any]) -> Any:
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
    report_group: str | int | None = None,
    bounds: Bounds | None = None,
    extensions: Sequence[Extension] = (),
) -> None:
    """Run a writer daemon until a signal; see `Daemon` and `Daemon.run`. Prints nothing; logs as "dspy_registry".

    The process is the daemon's alone: how its threads take turns is set for all of it.
    """
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.freeze()  # what is imported stays: a collection need not look at it, while everybody waits
    Daemon(path, group=group, report_group=report_group, bounds=bounds, extensions=extensions).run(ready)
