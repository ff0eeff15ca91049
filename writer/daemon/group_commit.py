"""Group commit: works that arrive while a commit is under way go into the next one.

    loop thread    put(work) -> inbox                             deliver each answer
    commit thread             inbox -> group -> one transaction ->

The inbox gives users, and the clients of a user, turns by the time that their works took. Only the commit thread
writes: LMDB's write transactions stay on their thread. Each work is staged on a separate draft, so that a work that
fails is undone alone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import lmdb

from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.errors import BusyError, RegistryError, StoreError
from dspy_registry.writer.commit import Committer
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.change_lines import log_change
from dspy_registry.writer.daemon.fair_queue import FairQueue
from dspy_registry.writer.daemon.group import Group, Work
from dspy_registry.writer.daemon.reply_cache import ReplyCache

# How long a group waits to become as large as the last one. Clients answered together send together again.
_PATIENCE: Final = 0.5  # of the last commit's duration
_MOST_PATIENT: Final = 0.003  # seconds in all
_LONGEST_GAP: Final = 0.001  # seconds from one request to the next
_OF_REGULARS: Final = 2  # a group that has half of them at once waits for no more: those came during a commit

_LEAST_STAGING: Final = 0.002  # seconds
_STAGING_OF_SYNC: Final = 2.0

_log = logging.getLogger("dspy_registry")


class Committed(NamedTuple):
    """Figures of one commit. `seconds` are from its begin to its end, `sync_seconds` those that the disk took."""

    requests: int
    seconds: float
    sync_seconds: float


class GroupCommit:
    """The queue of accepted work, and the thread that commits it.

    All public methods are for the loop's thread. `on_failure` is called there when the disk has failed. After that
    nothing is committed.
    """

    def __init__(
        self, committer: Committer, replies: ReplyCache, bounds: Bounds, on_failure: Callable[[StoreError], None]
    ) -> None:
        self._committer = committer
        self._replies = replies
        self._bounds = bounds
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._inbox = FairQueue()
        self._ended = asyncio.Event()
        self._failure: StoreError | None = None
        self._regulars = 1
        self._last_commit = 0.0
        self._accepted = 0
        self._held = 0
        self._freed = 0  # of what is held: bytes of works that have their answers
        self.requests = 0
        self._delivered = 0  # of those requests, by the loop
        self.groups = 0
        self.revision = committer.revision
        self.observers: list[Callable[[Committed], None]] = []
        """Each is called in the commit thread after each commit. It must be quick and raise nothing."""
        self._began: float | None = None  # when the commit under way began
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"GroupCommit(revision={self.revision}, queued={self.queued}, groups={self.groups})"

    @property
    def queued(self) -> int:
        """How many works wait for their commit."""
        return self._accepted - self.requests

    @property
    def held_bytes(self) -> int:
        """Memory that works and uploads take."""
        return self._held - self._freed

    def hold(self, size: int) -> None:
        """Count memory of an upload; below 0: it was freed."""
        self._held += size

    def refuse_if_full(self) -> None:
        """Raises BusyError when no further request fits."""
        if self.queued >= self._bounds.requests or self.held_bytes > self._bounds.held_bytes:
            raise BusyError(
                f"the writer daemon has {self.queued} requests of {self.held_bytes} bytes waiting, and takes no more."
            )

    def put(self, work: Work) -> None:
        """Accept a work. Works of one client are answered in the order of arrival."""
        self._accepted += 1
        self._held += work.held_bytes
        self._inbox.put(work)

    async def stop(self) -> None:
        """Finish what was accepted and end the thread."""
        self._inbox.end()
        await self._ended.wait()
        self._thread.join()

    @property
    def is_hanging(self) -> bool:
        """Whether the present commit has taken so long that it may never end."""
        began = self._began
        return began is not None and time.monotonic() - began > self._bounds.hanging

    # In the loop's thread again

    def _deliver(self, answers: Sequence[tuple[Work, Any]], change: Change | None) -> None:
        for work, answer in answers:
            try:
                work.resolve(answer)
            except Exception:
                _log.exception("an answer could not be delivered")
        self._delivered += len(answers)
        if change is not None:
            log_change(change)

    # In the commit thread

    def _run(self) -> None:
        try:
            while group := self._next_group():
                try:
                    self._commit(group)
                except BaseException as error:  # a bug in this code: it is not known what was committed
                    _log.exception("the commit thread failed")
                    self._fail(group, error)
                    self._give_up(StoreError(f"internal error in the writer daemon: {type(error).__name__}: {error}."))
        finally:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _next_group(self) -> list[Work]:
        """What has arrived: at least one work, or none at the end."""
        first = self._inbox.get(None)
        if first is None:
            return []
        group = [first]
        until = time.monotonic() + min(self._last_commit * _PATIENCE, _MOST_PATIENT)
        size = first.held_bytes
        is_waiting = False
        while len(group) < self._bounds.group and size < self._bounds.group_bytes:
            is_awaited = is_waiting and len(group) < self._regulars
            patience = min(until - time.monotonic(), _LONGEST_GAP) if is_awaited else 0.0
            work = self._inbox.get(max(patience, 0.0))
            if work is None:
                if is_waiting or len(group) * _OF_REGULARS >= self._regulars:
                    break
                is_waiting = True
                continue
            group.append(work)
            size += work.held_bytes
        self._regulars = len(group)
        group.sort(key=self._inbox.is_later)
        return group

    def _commit(self, works: list[Work]) -> None:
        if self._failure is not None:
            self._fail(works, self._failure)
            return
        seconds = staging_seconds(self._committer.last_sync, self._bounds.staging)
        group = Group(works, self._replies, seconds, self._inbox.expected)
        self._began = began = time.monotonic()
        used = time.thread_time()
        try:
            try:
                revision = self._committer.commit(group.stage)
            finally:
                self._began = None
                self._charge(group, time.thread_time() - used)
        except StoreError as error:
            self._fail(works, error)
            if self._committer.is_lost or is_disk_failure(error):
                self._give_up(error)
        except Exception as error:
            self._commit_apart(works, error)
        else:
            self._last_commit = time.monotonic() - began
            for observe in self.observers:
                observe(Committed(len(works), self._last_commit, self._committer.last_sync))
            self._inbox.put_back(group.left)
            self._regulars = len(works) - len(group.left)  # waiting for more than are staged delays all
            self._conclude(group.conclude(revision), revision, self._committer.last_change)

    def _charge(self, group: Group, seconds: float) -> None:
        """Tell what each work took. What the commit took beside staging is divided as staging was."""
        staging = sum(group.took.values())
        for work, own in group.took.items():
            self._inbox.charge(work, own, own / staging * (seconds - staging) if staging else 0.0)

    def _commit_apart(self, works: list[Work], error: Exception) -> None:
        """Commit each work alone, because one of them cannot be written and it is not known which."""
        if len(works) > 1:
            for work in works:
                self._commit([work])
            return
        if not isinstance(error, RegistryError):
            _log.error("internal error in a request", exc_info=error)
        self._fail(works, error)

    def _give_up(self, error: StoreError) -> None:
        """Commit nothing from now on."""
        self._failure = error
        self._loop.call_soon_threadsafe(self._on_failure, error)

    def _fail(self, works: list[Work], error: BaseException) -> None:
        self._conclude([(work, work.failure(error)) for work in works])

    def _conclude(self, answers: Sequence[tuple[Work, Any]], revision: int = 0, change: Change | None = None) -> None:
        """Count the works before anybody can know their answers, then let the loop deliver these.

        A lone answer goes out here, so that its client need not wait until the loop runs; not before earlier answers,
        which may be of the same client. Of many the loop sends the answers while the next group is staged.
        """
        is_lone = len(answers) == 1 and self._delivered == self.requests
        self.revision = max(self.revision, revision)
        self.requests += len(answers)
        self._freed += sum(work.held_bytes for work, _ in answers)
        self.groups += 1
        if is_lone:
            self._answer_at_once(*answers[0])
        self._loop.call_soon_threadsafe(self._deliver, answers, change)

    def _answer_at_once(self, work: Work, answer: Any) -> None:
        try:
            work.answer_at_once(answer)
        except Exception:
            _log.exception("an answer could not be sent")


def staging_seconds(sync: float, most: float) -> float:
    """How long a group may stage, when the last commit took `sync` seconds to become durable.

    Works that arrive meanwhile wait for two groups. So a quick disk has short groups, and a slow one loses nothing by
    long ones.
    """
    return min(max(_LEAST_STAGING, sync * _STAGING_OF_SYNC), most)


def is_disk_failure(error: StoreError) -> bool:
    """Whether LMDB may be wrong about the content of the disk. Then only a restart can tell.

    After a failed sync the next one may report success, although the pages of the first are lost.
    """
    cause = error.__cause__
    return isinstance(cause, lmdb.PanicError) or (isinstance(cause, lmdb.Error) and cause.code == errno.EIO)
