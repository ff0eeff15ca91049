"""What etcd itself has shown, from the first change to the last; hosts and clients must agree with it."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec

from dspy_registry import ModuleInfo
from dspy_registry.registry_store.errors import ClusterUnavailableError
from dspy_registry.writer.cluster.batches import expanded
from dspy_registry.writer.cluster.engine import KeyValue
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.options import ClusterOptions
from dspy_registry.writer.cluster.records import KINDS, GlobalModule

_decode = msgspec.msgpack.Decoder(ModuleInfo).decode
DONE, REFUSED, UNKNOWN = "done", "refused", "unknown"


class Told(NamedTuple):
    """What a client asked for, and what it was told. Each `value` is given once. `expected` None: any version."""

    name: str
    value: int
    expected: int | None
    outcome: str
    began: float
    ended: float


class Shown(NamedTuple):
    """A version as the cluster first showed it."""

    value: int | None
    revision: int


class Truth:
    """Follows etcd by itself. `seen`: up to here all is known, so that it may be compacted."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = tuple(urls)
        self.keys = Keys("/dspy-registry/", "0" * 16)
        self.seen = 0
        self.versions: dict[str, dict[int, Shown]] = defaultdict(dict)
        self.problems: list[str] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._follow()), daemon=True)

    @contextmanager
    def following(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            self._thread.join()

    async def _follow(self) -> None:
        task = asyncio.ensure_future(self._read())
        while not self._is_over.is_set() and not task.done():
            await asyncio.sleep(0.02)
        task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(result, Exception):
            self.problems.append(f"etcd cannot be followed: {result!r}")

    async def _read(self) -> None:
        engine = Etcd(ClusterOptions(endpoints=self._urls))
        try:
            while True:
                try:
                    async for step in engine.watch_from(self.keys.watched, self.seen + 1):
                        await self._take(engine, step.changes)
                except ClusterUnavailableError:
                    await asyncio.sleep(0.05)
        finally:
            await engine.close()

    async def _take(self, engine: Etcd, changes: Sequence[KeyValue]) -> None:
        if not changes:
            return
        while True:
            try:
                found = await expanded(engine, self.keys, changes)
                break
            except ClusterUnavailableError:
                await asyncio.sleep(0.05)
        for change in found:
            self._note(change)
        self.seen = max(self.seen, changes[-1].revision)

    def _note(self, change: KeyValue) -> None:
        place = self.keys.split_record(change.key)
        if place is None or place[0] != b"modules" or change.value is None:
            return
        name, module = place[1].decode(), KINDS[b"modules"].codec.load(change.value)
        if module.info is not None:
            shown = Shown(_decode(module.info).estimated_duration, _shown_at(module, change))
            known = self.versions[name].setdefault(module.version, shown)
            if known != shown:
                self.problems.append(f"{name} version {module.version} is {known}, then {shown}")


def _shown_at(module: GlobalModule, change: KeyValue) -> int:
    return module.revision or change.since


def judged(truth: dict[str, dict[int, Shown]], told: Iterable[Told]) -> Iterator[str]:
    """What is wrong with what clients were told: acknowledged is there once, refused is not there, order is kept."""
    done: dict[str, list[tuple[Told, int]]] = defaultdict(list)
    for one in told:
        found = [version for version, shown in truth.get(one.name, {}).items() if shown.value == one.value]
        if len(found) > 1:
            yield f"{one} is there {len(found)} times: {found}"
        elif one.outcome == DONE and not found:
            yield f"{one} was acknowledged and is not there"
        elif one.outcome == REFUSED and found:
            yield f"{one} was refused and is there: {found}"
        elif one.outcome == DONE and one.expected is not None and found != [one.expected + 1]:
            yield f"{one} is version {found}"
        elif one.outcome == DONE:
            done[one.name].append((one, found[0]))
    for name, pairs in done.items():
        yield from _out_of_order(name, pairs)


def _out_of_order(name: str, pairs: list[tuple[Told, int]]) -> Iterator[str]:
    """What was acknowledged before another change was asked for has the lower version."""
    for first, version in pairs:
        for other, later in pairs:
            if first.ended < other.began and version >= later:
                yield f"{name}: version {version} ({first}) was there before version {later} ({other}) was asked for"


def differing(truth: dict[str, dict[int, Shown]], host: str, kept: dict[str, dict[int, Shown]]) -> Iterator[str]:
    """What a host keeps and the cluster never showed so."""
    for name, versions in kept.items():
        for version, shown in versions.items():
            known = truth.get(name, {}).get(version)
            if known != shown:
                yield f"host {host} has {name} version {version} as {shown}, and the cluster as {known}"


def went_back(host: str, seen: Sequence[dict[str, tuple[int, int]]]) -> Iterator[str]:
    """Where the version or the global revision of a name went back between two looks at a host."""
    newest: dict[str, tuple[int, int]] = {}
    for look in seen:
        for name, now in look.items():
            before = newest.get(name, (0, 0))
            if now[0] < before[0] or now[1] < before[1]:
                yield f"host {host}: {name} went from {before} back to {now}"
            newest[name] = now


def out_of_order(host: str, kept: Iterable[tuple[int, int]]) -> Iterator[str]:
    """Where a later revision of a host shows an older global one. `kept` are pairs of both."""
    highest = 0
    by_revision: dict[int, list[int]] = defaultdict(list)
    for revision, of_cluster in kept:
        by_revision[revision].append(of_cluster)
    for revision, found in sorted(by_revision.items()):
        if min(found) < highest:
            yield f"host {host}: revision {revision} shows global revision {min(found)}, and an earlier one {highest}"
        highest = max(highest, *found)


def agreed(found: dict[str, list[Any]]) -> Iterator[str]:
    """What hosts show differently, by host."""
    (first, expected), *others = found.items()
    for host, shown in others:
        if shown != expected:
            here, there = (set(map(repr, one)) for one in (expected, shown))
            yield f"only {first} shows {sorted(here - there)}, only {host} shows {sorted(there - here)}"
            yield from ([f"{first} and {host} show modules in another order"] if here == there else [])
