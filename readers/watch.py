"""Following the change log: look at the revision word every few milliseconds, and read the log when it has changed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.errors import InvalidArgumentError


class Followed(Protocol):
    """What a watcher needs of a registry."""

    @property
    def revision(self) -> int: ...

    @property
    def registry_id(self) -> bytes: ...

    def _brief_snapshot(self) -> AbstractContextManager[Snapshot]: ...


class Follower:
    """How far a watcher has come, and in which registry, because a restored registry counts its own revisions."""

    def __init__(self, registry: Followed, since: int | None, timeout: float | None) -> None:
        self._registry = registry
        self._timeout = timeout
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
        self._registry_id, self._seen = registry_id, snapshot.revision
        if found:
            self._quiet_since = time.monotonic()
        return found

    def is_over(self) -> bool:
        """Whether nothing has changed for the watcher's whole timeout."""
        return self._timeout is not None and time.monotonic() - self._quiet_since >= self._timeout


def _refuse_negative(**numbers: object) -> None:
    """`watch` calls this at once, not at the first change. NaN is refused too, because no time ever reaches it."""
    for argument, value in numbers.items():
        if value is not None and not (isinstance(value, int | float) and value >= 0):
            meaning = "a revision" if argument == "since" else "a number of seconds"
            raise InvalidArgumentError(f"{argument} is {value!r}; it is {meaning}, 0 or more.")


def changes(registry: Followed, since: int | None, timeout: float | None, poll: float) -> Iterator[Change]:
    """See Registry.watch."""
    _refuse_negative(since=since, timeout=timeout, poll=poll)
    return _changes(Follower(registry, since, timeout), poll)


def _changes(follower: Follower, poll: float) -> Iterator[Change]:
    while True:
        yield from follower.news()
        if follower.is_over():
            return
        time.sleep(poll)


def changes_async(registry: Followed, since: int | None, timeout: float | None, poll: float) -> AsyncIterator[Change]:
    """See Registry.watch_async."""
    _refuse_negative(since=since, timeout=timeout, poll=poll)
    return _changes_async(Follower(registry, since, timeout), poll)


async def _changes_async(follower: Follower, poll: float) -> AsyncIterator[Change]:
    import asyncio

    while True:
        for change in follower.news():
            yield change
        if follower.is_over():
            return
        await asyncio.sleep(poll)
