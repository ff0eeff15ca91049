"""Reading page by page from a real etcd: one revision, the next page on its way, and nothing left behind."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing

import pytest

from dspy_registry.writer.cluster.engine import CompactedError, Page
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.options import ClusterOptions
from dspy_registry.writer.cluster.pages import pages
from tests.support.etcd import EtcdCluster, needs_etcd

pytestmark = needs_etcd
PREFIX = b"/pages/"


class Asked(Etcd):
    """An engine that tells how many pages it was asked for."""

    def __init__(self, cluster: EtcdCluster) -> None:
        super().__init__(ClusterOptions(endpoints=tuple(cluster.urls)))
        self.count = 0
        self.twice = asyncio.Event()

    async def range_at(self, prefix: bytes, after: bytes = b"", revision: int = 0, limit: int = 500) -> Page:
        self.count += 1
        if self.count == 2:
            self.twice.set()
        return await super().range_at(prefix, after, revision, limit)


def fill(cluster: EtcdCluster, count: int, value: bytes = b"v") -> None:
    for number in range(count):
        cluster.put(PREFIX + b"%d" % number, value)


def with_engine(cluster: EtcdCluster, work: Callable[[Asked], Awaitable[None]]) -> None:
    async def run() -> None:
        engine = Asked(cluster)
        try:
            await work(engine)
        finally:
            await engine.close()

    asyncio.run(run())


@pytest.mark.parametrize("count", [0, 1, 3, 4, 9])
def test_all_pages_are_of_one_revision(cluster: EtcdCluster, count: int) -> None:
    fill(cluster, count)

    async def work(engine: Asked) -> None:
        found, revisions = {}, set()
        async with aclosing(pages(engine, PREFIX, 3)) as listed:
            async for page in listed:
                found.update({item.key: item.value for item in page.items})
                revisions.add(page.revision)
                await asyncio.to_thread(fill, cluster, 12, b"later")
        assert found == {PREFIX + b"%d" % number: b"v" for number in range(count)}
        assert len(revisions) == 1

    with_engine(cluster, work)


def test_the_next_page_is_asked_for_while_one_is_worked_on(cluster: EtcdCluster) -> None:
    fill(cluster, 9)

    async def work(engine: Asked) -> None:
        async with aclosing(pages(engine, PREFIX, 3)) as listed:
            assert len((await anext(listed)).items) == 3
            await engine.twice.wait()
            assert engine.count == 2  # and no more than that: a page waits for the one before it

    with_engine(cluster, work)


def test_a_compaction_in_between_is_told(cluster: EtcdCluster) -> None:
    fill(cluster, 9)

    async def work(engine: Asked) -> None:
        async with aclosing(pages(engine, PREFIX, 2)) as listed:
            await anext(listed)
            await asyncio.to_thread(fill, cluster, 1, b"later")
            await asyncio.to_thread(cluster.compact)
            with pytest.raises(CompactedError):
                async for _ in listed:
                    pass
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with_engine(cluster, work)


def test_who_stops_early_leaves_no_request_behind(cluster: EtcdCluster) -> None:
    fill(cluster, 9)

    async def work(engine: Asked) -> None:
        async with aclosing(pages(engine, PREFIX, 2)) as listed:
            async for _ in listed:
                break
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with_engine(cluster, work)
