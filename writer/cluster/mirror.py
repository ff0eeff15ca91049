"""The mirror of the cluster on this host: list once, watch from there, resume, list again when compacted.

    etcd -> watch -> queue of whole transactions -> one work of the group commit -> readers

The position is stored in the commit that shows what was applied. So each transaction is applied once, also over
kill -9.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

import msgspec

from dspy_registry.registry_store.cluster_rows import HELD, Position, position_codec, row_key, split_row_key
from dspy_registry.registry_store.errors import ClusterUnavailableError, CorruptRecordError, RegistryError
from dspy_registry.registry_store.layout import META_CLUSTER
from dspy_registry.registry_store.scan import value_at
from dspy_registry.writer import failpoints
from dspy_registry.writer.catalog import Catalog
from dspy_registry.writer.cluster.ahead import Ahead
from dspy_registry.writer.cluster.backlog import Backlog
from dspy_registry.writer.cluster.batches import expanded, newest
from dspy_registry.writer.cluster.engine import CompactedError, Engine, KeyValue
from dspy_registry.writer.cluster.following import (
    Applied,
    adopt_all,
    advance,
    differs,
    follow,
    look_again,
)
from dspy_registry.writer.cluster.global_rows import named, rows
from dspy_registry.writer.cluster.hosts import Hosts
from dspy_registry.writer.cluster.keys import BATCHES, Keys, head_codec
from dspy_registry.writer.cluster.observer import Observer
from dspy_registry.writer.cluster.pages import pages
from dspy_registry.writer.cluster.program_mirror import ProgramMirror
from dspy_registry.writer.cluster.program_store import ProgramStore
from dspy_registry.writer.cluster.turns import Turns
from dspy_registry.writer.daemon.host import Host
from dspy_registry.writer.draft import Draft

_PAUSE: Final = 0.2  # seconds before the next node is asked
_PAGE: Final = 2000  # keys that a list reads at once
_COMPARED_AT_ONCE: Final = 200
_LOOK_PAUSE: Final = 0.25
"""Seconds between two looks whether what was set aside fits by now. Each is a work of its own in the commit."""
_QUIET_REVISIONS: Final = 1000
"""Revisions that change nothing here are not committed one by one. After that many the position moves."""

_log = logging.getLogger("dspy_registry")


class Mirror:
    """Follows the cluster. Belongs to the daemon's loop. `position` is the one in the store."""

    def __init__(self, host: Host, engine: Engine, keys: Keys, position: Position) -> None:
        self._host = host
        self._engine = engine
        self._keys = keys
        self.position = position
        self.newest = position.revision  # of the cluster, as far as it is known
        self.heard_at: float | None = None  # on the monotonic clock, when the watch last said anything. None: never
        self._began = time.monotonic()
        self.turns = Turns(keys.host.decode())
        self.ahead = Ahead(keys, position)
        self.backlog = Backlog(self._is_awaited, lambda step: any(map(self._is_observed, step.changes)))
        self.hosts = Hosts(keys)
        self.observers: list[Observer] = [self.hosts]
        """Told of the keys that are kept in memory alone, behind the commit of what they came with."""
        self.aside: dict[tuple[bytes, bytes], str] = self._set_aside_before()
        self.reconnects = 0
        self.lists = 0
        self.error = ""
        self.is_listed = asyncio.Event()
        """Set once this host has seen the whole cluster, in this run of the daemon or an earlier one."""
        self._next = position.revision + 1
        self.programs = ProgramStore(engine, keys, lambda: self.hosts.alive)
        self._programs = ProgramMirror(host, self.programs)
        self._waiting: list[tuple[int, int, asyncio.Future[int]]] = []
        self._may_read_more = any(kind == BATCHES for kind, _ in self.aside)  # than the release that set it aside
        self._look_after = 0.0  # on the monotonic clock
        self._looked_at = 0  # the local revision at which what was set aside was last looked at

    @property
    def applied(self) -> int:
        """The global revision that readers of this host see: what came behind the position has changed nothing."""
        return max(self.position.revision, self._next - 1)

    @property
    def silent(self) -> float:
        """For how many seconds nothing was heard of the cluster: this host may have missed changes for so long."""
        return time.monotonic() - (self._began if self.heard_at is None else self.heard_at)

    async def passed(self, revision: int) -> int:
        """Wait until readers see everything up to a global revision. Returns this host's revision then."""
        if self.position.revision >= revision:
            return self._host.revision
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (revision, id(future), future))
        self.backlog.stir()
        return await future

    async def run(self) -> None:
        """Follow the cluster until cancelled. Errors are told by `error` and tried again."""
        while True:
            try:
                if self.position.revision == 0 or self._may_read_more:
                    await self._list()
                    self._may_read_more = False
                self.is_listed.set()
                await self._watch()
            except CompactedError as error:
                _log.warning("the cluster has compacted what this host missed (%s): all of it is compared", error)
                await self._relist()
            except RegistryError as error:
                self._failed(error)
            except Exception as error:
                _log.exception("the mirror of the cluster failed, and begins again")
                self._failed(RegistryError(f"internal error in the mirror: {type(error).__name__}: {error}."))
            await asyncio.sleep(_PAUSE)

    async def _relist(self) -> None:
        try:
            await self._list()
        except CompactedError:  # again, while it was read
            self._next = self.position.revision + 1
        except RegistryError as error:
            self._failed(error)

    def _failed(self, error: RegistryError) -> None:
        self.reconnects += 1
        if not self.error or not isinstance(error, ClusterUnavailableError):
            _log.warning("the cluster is not followed: %s", error)
        self.error = error.message

    # Watch

    async def _watch(self) -> None:
        await self._list_observed()
        self.ahead.begin(self._next, self.position.head)
        self.backlog.clear()
        applying = asyncio.ensure_future(self._apply_steps())
        reading = asyncio.ensure_future(self._read_steps())
        try:
            await asyncio.wait((applying, reading), return_when=asyncio.FIRST_COMPLETED)
            await self.backlog.empty(applying)  # what was read is applied before the watch begins again behind it
        finally:
            for task in (reading, applying):
                task.cancel()
            results = await asyncio.gather(reading, applying, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _read_steps(self) -> None:
        async for events in self._engine.watch_from(self._keys.watched, self._next):
            self.heard_at = time.monotonic()
            self.newest = max(self.newest, events.newest)
            if events.changes:
                hosts = [head.host for head in self.ahead.saw(events.changes)]
                for host in hosts:
                    self.turns.saw(host)
                await self.backlog.put(events)
                if self.position.host in hosts:  # often before the reply to its transaction
                    self.backlog.expect(False)

    async def _apply_steps(self) -> None:
        while True:
            steps = await self.backlog.take()
            try:
                await self._apply([change for step in steps for change in step.changes])
                self.error = ""  # not before: a step that cannot be applied is read again and again
            finally:
                self.backlog.done(steps)

    async def _apply(self, changes: list[KeyValue]) -> None:
        if not changes:
            return
        until = changes[-1].revision
        records = [change for change in changes if not self._is_observed(change)]
        if records or until - self.position.revision >= _QUIET_REVISIONS:
            records = await expanded(self._engine, self._keys, records)
            keys, start, lost = self._keys, self.position, self._programs.lost
            await self._commit(lambda draft: follow(draft, keys, start, records, until, lost))
        self._tell(changes)
        if self._looked_at != self._host.revision and time.monotonic() >= self._look_after:
            await self._look_again()
        self._next = until + 1

    def _is_awaited(self, revision: int) -> bool:
        return bool(self._waiting) and self._waiting[0][0] <= revision

    def _is_observed(self, change: KeyValue) -> bool:
        return any(change.key.startswith(observer.prefix) for observer in self.observers)

    def _tell(self, changes: Sequence[KeyValue]) -> None:
        for change in changes:
            for observer in self.observers:
                observer.see(change)

    async def _list_observed(self) -> None:
        for observer in self.observers:
            revision = await observer.list(self._engine)
            if revision < self.position.revision:
                raise RegistryError(
                    f"the cluster is at revision {revision}, and this host has seen {self.position.revision}: "
                    "etcd was restored from an older backup.",
                    remedy="`dspy-registry cluster leave`, then `cluster join --discard`, on each host.",
                )

    async def _look_again(self) -> None:
        """Something has changed on this host: what was set aside may fit now."""
        aside, position, lost = tuple(self.aside), self.position, self._programs.lost

        def stage(draft: Draft) -> Applied:
            done = Applied(position, lost)
            look_again(draft, done, aside)
            return done

        self._looked_at = await self._commit(stage)
        self._look_after = time.monotonic() + _LOOK_PAUSE

    async def _commit(self, stage: Callable[[Draft], Applied]) -> int:
        """Commit, and first what the stage needs of programs. Raises CompactedError, ClusterUnavailableError."""
        return await self._programs.supplied(lambda: self._begun(stage))

    async def _begun(self, stage: Callable[[Draft], Applied]) -> int:
        """Commit, and note what was done. A commit that has begun is noted, also when this is cancelled meanwhile."""
        committing = asyncio.ensure_future(self._commit_and_note(stage))
        try:
            return await asyncio.shield(committing)
        except asyncio.CancelledError:
            await asyncio.wait((committing,))
            await asyncio.gather(committing, return_exceptions=True)  # nobody waits for its error any more
            raise

    async def _commit_and_note(self, stage: Callable[[Draft], Applied]) -> int:
        failpoints.reach("before_following")
        submitted = await self._host.submit(stage)
        done = submitted.result
        self.position = done.position
        for place in done.settled:
            self.aside.pop(place, None)
        for place, reason in done.aside.items():
            _log.warning("%s of the cluster is set aside: %s", named(*place), reason)
            self.aside[place] = reason
        while self._waiting and self._waiting[0][0] <= self.position.revision:
            _, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(submitted.revision)
        return submitted.revision

    # List

    async def _list(self) -> None:
        """Compare everything with the cluster at one revision, page by page. Take over what differs, in one commit."""
        self.lists += 1
        different: list[KeyValue] = []
        seen: set[bytes] = set()
        revision, head = 0, None
        async with aclosing(pages(self._engine, self._keys.watched, _PAGE)) as listed:
            async for page in listed:
                revision = page.revision
                head = next((item for item in page.items if item.key == self._keys.head), head)
                items = await expanded(self._engine, self._keys, page.items, revision)
                different += await self._differing(items)
                seen.update(item.key for item in items)
        position = self._listed(revision, head)
        gone, different = self._gone(seen), newest(different)
        keys, lost = self._keys, self._programs.lost
        await self._commit(lambda draft: adopt_all(draft, keys, position, different, gone, lost))
        self._next = revision + 1
        self.ahead.listed(self.position)

    def _listed(self, revision: int, head: KeyValue | None) -> Position:
        if head is None or head.value is None:
            return msgspec.structs.replace(self.position, revision=revision)
        try:
            number = head_codec.load(head.value).number
        except CorruptRecordError:  # of another release: the number only counts
            number = self.position.number
        return msgspec.structs.replace(self.position, revision=revision, head=head.revision, number=number)

    async def _differing(self, items: Sequence[KeyValue]) -> list[KeyValue]:
        """Some at a time: in between the next page is asked for, and clients are answered."""
        found: list[KeyValue] = []
        for start in range(0, len(items), _COMPARED_AT_ONCE):
            with self._host.environment.reading() as txn:
                draft = Draft(Catalog(txn, self._host.environment.dbs))
                some = items[start : start + _COMPARED_AT_ONCE]
                found += [item for item in some if differs(draft, self._keys, item)]
            await asyncio.sleep(0)
        return found

    def _gone(self, seen: set[bytes]) -> list[bytes]:
        with self._host.environment.reading() as txn:
            stored = Catalog(txn, self._host.environment.dbs).cluster_rows(row_key(b"", b""))
            places = [(place, *split_row_key(place)) for place, _ in stored]
            return [place for place, kind, key in places if kind != HELD and self._keys.record(kind, key) not in seen]

    def _set_aside_before(self) -> dict[tuple[bytes, bytes], str]:
        with self._host.environment.reading() as txn:
            known = rows(Catalog(txn, self._host.environment.dbs))
            return {split_row_key(place): row.aside for place, row in known if row.aside}

    async def keep_position(self) -> None:
        """Store how far the watch has come, so that the next run resumes from there."""
        until = self._next - 1
        if until > self.position.revision:
            await self._host.submit(lambda draft: advance(draft, until))


def stored_position(host: Host) -> Position | None:
    """How far this host has followed a cluster. None: it belongs to none. Raises CorruptRecordError."""
    environment = host.environment
    with environment.reading() as txn:
        stored = value_at(txn, environment.dbs.meta, META_CLUSTER)
        if stored is None:
            return None
        position: Position = position_codec.load(stored, META_CLUSTER, environment.dbs.format)
        return position
