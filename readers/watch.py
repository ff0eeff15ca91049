"""Following the change log: sleep until the revision word moves, then read what the log has of it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Protocol

from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.readers.waiting import LONGEST_REST, can_sleep, joined
from dspy_registry.readers.watched import Watched
from dspy_registry.registry_store.arguments import typed
from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.environment import Environment
from dspy_registry.registry_store.errors import InvalidArgumentError
from dspy_registry.registry_store.revision import RevisionFile, acknowledged, committed, is_sound


class Followed(Protocol):
    """What a watcher needs of a registry."""

    _environment: Environment | None
    _file: RevisionFile

    @property
    def revision(self) -> int: ...

    @property
    def registry_id(self) -> bytes: ...

    def _brief_snapshot(self) -> AbstractContextManager[Snapshot]: ...


class Follower:
    """How far a watcher has come, and in which registry, because a restored registry counts its own revisions."""

    def __init__(
        self, registry: Followed, since: int | None, timeout: float | None, poll: float, watched: Watched
    ) -> None:
        self._registry = registry
        self._timeout = timeout
        self._poll = poll
        self._watched = watched
        self._registry_id = registry.registry_id
        self._seen = registry.revision if since is None else since
        self._quiet_since = time.monotonic()

    def news(self) -> list[Change]:
        """The changes since the last look, oldest first. One with `everything` stands for all that the log dropped."""
        registry = self._registry
        registry_id = registry.registry_id
        if registry_id == self._registry_id and registry.revision == self._seen:
            return []
        with registry._brief_snapshot() as snapshot:
            if registry_id == self._registry_id:
                found = snapshot.changes_since(self._seen)
            else:
                found = [Change(snapshot.revision, snapshot.committed_at, everything=True)]
            told = [self._watched.told(change, snapshot) for change in found]
        self._registry_id, self._seen = registry_id, snapshot.revision
        if any(told):
            self._quiet_since = time.monotonic()
        return [change for change in told if change is not None]

    def patience(self) -> float:
        """Seconds until the watcher's timeout, at most the longest sleep. 0 or less: it is over."""
        if self._timeout is None:
            return LONGEST_REST
        return min(LONGEST_REST, self._timeout - (time.monotonic() - self._quiet_since))

    def sleep(self, seconds: float) -> None:
        """Sleep until there may be news, at most so long."""
        file = self._registry._file
        if not can_sleep(file):
            time.sleep(min(self._poll, seconds))
            return
        from threading import Lock

        until_rung = Lock()  # no Event: a signal's handler may fork inside its `wait`, and the fork calls `wake`
        until_rung.acquire()

        def wake() -> None:
            with suppress(RuntimeError):  # it was woken already
                until_rung.release()

        with joined(file, wake, partial(self._must_look, file)):
            if not self._has_moved(file):
                until_rung.acquire(timeout=seconds)

    async def sleep_async(self, seconds: float) -> None:
        """`sleep` for asyncio."""
        import asyncio

        file = self._registry._file
        if not can_sleep(file):
            await asyncio.sleep(min(self._poll, seconds))
            return
        loop = asyncio.get_running_loop()
        is_rung = loop.create_future()

        def wake() -> None:
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(lambda: None if is_rung.done() else is_rung.set_result(None))

        with joined(file, wake, partial(self._must_look, file)):
            if not self._has_moved(file):
                await asyncio.wait((is_rung,), timeout=seconds)

    def _has_moved(self, file: RevisionFile) -> bool:
        """Whether a commit was concluded since the last look. Of one under way, the bell tells."""
        word = file.word[()]
        return not is_sound(word) or acknowledged(word) > self._seen  # not sound: the file was retired

    def _must_look(self, file: RevisionFile) -> bool:
        """Whether there may be news of which no bell tells, because somebody was killed; or the registry was closed."""
        return file.word[()] != committed(self._seen) or self._registry._environment is None


def _refuse_negative(**numbers: float | None) -> None:
    """`watch` calls this at once, not at the first change. NaN is refused too, because no time ever reaches it."""
    for argument, value in numbers.items():
        if value is not None and not value >= 0:
            meaning = "a revision" if argument == "since" else "a number of seconds"
            raise InvalidArgumentError(f"{argument} is {value!r}; it is {meaning}, 0 or more.")


@typed
def follower(
    registry: Followed,
    since: int | None,
    names: str | Iterable[str] | None,
    records: bool,
    timeout: float | None,
    poll: float,
) -> Follower:
    """A watcher with the arguments of Registry.watch. Raises InvalidArgumentError, TypeError."""
    _refuse_negative(since=since, timeout=timeout, poll=poll)
    return Follower(registry, since, timeout, poll, Watched(names, records))


def changes(follower: Follower) -> Iterator[Change]:
    """See Registry.watch."""
    while True:
        yield from follower.news()
        patience = follower.patience()
        if patience <= 0:
            return
        follower.sleep(patience)


async def changes_async(follower: Follower) -> AsyncIterator[Change]:
    """See Registry.watch_async."""
    while True:
        for change in follower.news():
            yield change
        patience = follower.patience()
        if patience <= 0:
            return
        await follower.sleep_async(patience)
