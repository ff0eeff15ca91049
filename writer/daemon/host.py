"""The part of the daemon that extensions may use. Manifests, discovery and usage know only `Host`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.protocol import DaemonStatus, HealthRequest
from dspy_registry.writer.daemon.group import Work
from dspy_registry.writer.daemon.group_commit import Committed
from dspy_registry.writer.draft import Draft

T = TypeVar("T")


@dataclass(frozen=True)
class Submitted(Generic[T]):
    """The result of a `submit`: the revision in which it is visible, and what the stage returned."""

    revision: int
    result: T


class HealthObserver(Protocol):
    """Takes what this host learns of circuits to other hosts. It must be quick and raise nothing."""

    def moved(self, rows: Sequence[CircuitRow]) -> None:
        """These circuits have opened, or closed: `until` is 0 then."""

    def reset(self, name: str, version: int | None) -> None:
        """An operator has closed a circuit; None: of every version."""


class Health(Protocol):
    """The circuits of this host, for who brings what other hosts have learned."""

    def observe(self, observer: HealthObserver) -> None:
        """Tell this observer of what this host opens and closes from now on."""

    def rows(self) -> Sequence[CircuitRow]:
        """What is published now."""

    def open_from_afar(self, host: str, row: CircuitRow, seconds: float) -> None:
        """Open a circuit as another host has, for this many seconds from now."""

    def close_from_afar(self, host: str, name: str, version: int, *, by_hand: bool) -> None:
        """Close what that host has opened. `by_hand`: also what another host has opened."""


class Steering(Protocol):
    """Who changes what one host alone may change for all hosts of a cluster."""

    @property
    def leads(self) -> bool:
        """Whether this host is the one."""

    async def submit(self, stage: Callable[[Draft], T]) -> Submitted[T]:
        """As `Host.submit`, for all hosts. Raises RegistryError, having changed nothing, when it has lost the lead."""


class Host(Protocol):
    """The daemon as its extensions see it. All of it is for the thread of the daemon's loop."""

    usage_sink: Callable[[bytes], asyncio.Future[int] | None] | None
    """Called with each batch of usage, as the client packed it. It may raise RegistryError and must not block: merge
    with `submit`. The client is answered when the returned future has the revision, or at once for None. A sink of
    None refuses reports."""

    change_taker: Callable[[Work], bool] | None
    """Called with each change of a client. True: the extension commits it elsewhere, and resolves it with its answer
    when this registry shows it. False, or a taker of None: it goes into the next group."""
    health_sink: Callable[[HealthRequest], None] | None
    """Called with each message about health. It may raise RegistryError and must not block. None refuses them."""

    health: Health | None
    """The circuits that this daemon keeps. None: it keeps none."""

    steering: Steering | None
    """Who carries out rollouts for all hosts of a cluster. None: this daemon, for its registry."""

    @property
    def files_group(self) -> int | None:
        """The group that files which the daemon creates belong to, by number. None: no particular one."""

    @property
    def environment(self) -> Environment:
        """The open registry, for reads. Only while the daemon runs."""

    @property
    def revision(self) -> int:
        """The newest revision that the daemon has committed. Only while it runs. Costs nothing."""

    def observe_commits(self, observer: Callable[[Committed], None]) -> None:
        """Call this with the figures of each commit, in the commit thread. It must be quick and raise nothing."""

    def status(self) -> DaemonStatus:
        """The state of the daemon. Only while it runs, in its loop."""

    async def submit(self, stage: Callable[[Draft], T], *, is_background: bool = False) -> Submitted[T]:
        """Commit a change of the daemon in one group with the changes of clients.

        `is_background`: if it is costly, the next one rests beside clients with quick requests.
        `stage` is called in the commit thread, with a draft that holds all changes accepted before. It may be called
        more than once, so it must not depend on earlier calls. An exception of `stage` is raised here, and its
        changes are dropped. Returns when the change is durable and visible.
        """

    def add_task(self, coroutine: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a coroutine until it ends or the daemon stops. `coroutine` is called to make it.

        At the stop it is cancelled before the queue closes, so that it may still `submit` in a `finally`. An exception
        that it does not handle is logged, and ends this task alone.
        """

    def reloading(self) -> AbstractContextManager[None]:
        """Within it, configuration such as manifests comes into force: the service manager is told."""

    def add_section(self, name: str, provider: Callable[[], Any]) -> None:
        """Add a section to the status: the plain values that `provider` returns.

        A mapping whose `error` is not empty, or whose `errors` are not, makes `dspy-registry status` exit with 1. So a
        part that failed says it there: the last check, the last backup.
        """


class LocalWork(Work, Generic[T]):
    """A change that the daemon itself submits."""

    def __init__(
        self, stage: Callable[[Draft], T], future: asyncio.Future[Submitted[T]], *, is_background: bool = False
    ) -> None:
        self.by = (os.geteuid(), os.getpid())
        self.is_background = is_background
        self._stage = stage
        self._result: T
        self.future = future

    def stage(self, draft: Draft) -> None:
        self._result = self._stage(draft)

    def success(self, revision: int) -> Submitted[T]:
        return Submitted(revision, self._result)

    def failure(self, error: BaseException) -> BaseException:
        return error

    def resolve(self, answer: Submitted[T] | BaseException) -> None:
        if self.future.done():
            return
        if isinstance(answer, BaseException):
            self.future.set_exception(answer)
        else:
            self.future.set_result(answer)
