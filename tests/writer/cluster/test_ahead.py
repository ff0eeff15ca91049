"""A group of registrations moves behind changes of other modules, and behind nothing else."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from dspy_registry import ConflictError, Registry, RegistryError, WriterClient, errors
from dspy_registry.registry_store.cluster_rows import VERSIONS, Position
from dspy_registry.registry_store.layout import ALIASES, LABELS, MODULES
from dspy_registry.writer.cluster.ahead import Ahead
from dspy_registry.writer.cluster.backlog import MOST_WAITING, Backlog
from dspy_registry.writer.cluster.batches import PLACES_OF_A_CHANGE
from dspy_registry.writer.cluster.engine import Events, KeyValue
from dspy_registry.writer.cluster.keys import Head, Keys, head_codec
from dspy_registry.writer.cluster.records import KINDS, GlobalModule
from dspy_registry.writer.cluster.staged import Staged
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module
from tests.support.etcd import EtcdCluster, host, in_step, needs_etcd, patient, section, serve_cluster, shown
from tests.support.raw_access import opened

_KEYS = Keys("/p/", "me")
_PREFIX = "/dspy-registry/"
_HEAD = b"/dspy-registry/d/head"
_START = Position("cluster", "me", 10, 10, 3)


def group(*names: str) -> Staged:
    """A group of new modules, staged at the start."""
    records = {
        (MODULES, name.encode()): KINDS[MODULES].codec.dump(GlobalModule(1, place)) for place, name in enumerate(names)
    }
    read: dict[bytes, bytes | None] = {name.encode(): None for name in names}
    return Staged(_START, cast("Any", None), b"", {}, {}, False, records, {}, {}, names=read)


def transaction(revision: int, number: int, *keys: bytes, by: str = "other") -> list[KeyValue]:
    """What the watch brings of a change of another host."""
    head = KeyValue(_KEYS.head, head_codec.dump(Head(b"c", number, by, 0)), revision)
    return [*(KeyValue(key, b"", revision) for key in keys), head]


def of_module(name: str, prefix: str = "/p/") -> bytes:
    return Keys(prefix, "me").record(MODULES, name.encode())


def test_a_group_moves_behind_changes_of_other_modules() -> None:
    ahead = Ahead(_KEYS, _START)
    staged = group("acme.One", "acme.Two")
    assert ahead.moved(staged) is staged
    version = _KEYS.record(VERSIONS, b"acme.Other\x000000000001")
    heads = ahead.saw([*transaction(12, 4, of_module("acme.Other")), *transaction(15, 5, version)])
    assert [head.number for head in heads] == [4, 5]
    moved = ahead.moved(staged)
    assert moved is not None
    assert (moved.position.head, moved.position.number, moved.position.revision) == (15, 5, 10)
    orders = [KINDS[MODULES].codec.load(value).order for value in moved.puts.values()]
    assert orders == [6 * PLACES_OF_A_CHANGE, 6 * PLACES_OF_A_CHANGE + 1]
    assert ahead.moved(moved) == moved  # and again, from there


@pytest.mark.parametrize(
    "key",
    [
        of_module("acme.One"),
        _KEYS.record(VERSIONS, b"acme.One\x000000000001"),
        _KEYS.record(ALIASES, b"acme.One"),
        _KEYS.record(LABELS, b"acme.Other\x00stable"),
        _KEYS.batches + b"other/id",
        _KEYS.watched + b"of a later release",
    ],
)
def test_a_group_is_staged_again_behind_any_other_change(key: bytes) -> None:
    ahead = Ahead(_KEYS, _START)
    ahead.saw(transaction(12, 4, key))
    assert ahead.moved(group("acme.One")) is None


def test_a_group_is_staged_again_where_not_all_is_known_that_came_since() -> None:
    own = Ahead(_KEYS, _START)
    own.saw(transaction(12, 4, of_module("acme.Other"), by="me"))  # it landed late: its answers are not known here
    assert own.moved(group("acme.One")) is None
    of_another_release = Ahead(_KEYS, _START)
    of_another_release.saw([KeyValue(_KEYS.head, b"?", 12)])
    asyncio.run(of_another_release.reached(12))
    assert of_another_release.moved(group("acme.One")) is None
    many = Ahead(_KEYS, _START)
    for revision in range(11, 80):
        many.saw(transaction(revision, revision, of_module("acme.Other")))
    assert many.moved(group("acme.One")) is None
    listed = Ahead(_KEYS, _START)
    listed.listed(Position("cluster", "me", 20, 20, 7))
    assert listed.moved(group("acme.One")) is None
    anything = group("acme.One")
    anything.names = None
    ahead = Ahead(_KEYS, _START)
    assert ahead.moved(anything) is anything
    ahead.saw(transaction(12, 4, of_module("acme.Other")))
    assert ahead.moved(anything) is None


def test_what_the_watch_brings_again_counts_once() -> None:
    ahead = Ahead(_KEYS, _START)
    for _ in range(2):
        ahead.begin(11, 10)
        assert ahead.head == 10
        ahead.saw([KeyValue(_KEYS.hosts + b"other", b"", 11), *transaction(12, 4, of_module("acme.Other"))])
    moved = ahead.moved(group("acme.One"))
    assert moved is not None
    assert (moved.position.head, moved.position.number) == (12, 4)


def step(revision: int) -> Events:
    return Events([KeyValue(b"k", b"", revision)], revision)


def test_steps_wait_for_an_own_change_alone_and_not_for_long() -> None:
    async def taken(expecting: bool, *steps: Events, due: int = 0, urgent: int = 0, longest: float = 60.0) -> list[int]:
        backlog = Backlog(lambda revision: 0 < due <= revision, lambda one: one.newest == urgent, longest)
        backlog.expect(expecting)
        await backlog.put(steps[0])
        taking = asyncio.ensure_future(backlog.take())
        for one in steps[1:]:
            await asyncio.sleep(0)
            await backlog.put(one)
        found = await taking
        backlog.done(found)
        return [one.newest for one in found]

    async def all_of_them() -> None:
        assert await taken(True, step(1), longest=0.01) == [1]  # nothing else ever comes
        assert await taken(True, step(1), step(2), step(3), due=3) == [1, 2, 3]
        assert await taken(True, step(1), step(2), due=1) == [1]
        assert await taken(True, step(1), step(2), urgent=1) == [1]
        assert await taken(False, step(1), step(2)) == [1]
        many = [step(number) for number in range(1, MOST_WAITING + 5)]
        assert len(await taken(True, *many)) >= MOST_WAITING

    asyncio.run(all_of_them())


def test_nobody_waits_for_steps_that_are_taken_no_more() -> None:
    """The watch has ended with steps that wait, and the step before them cannot be applied: the mirror begins again."""

    async def failing(backlog: Backlog) -> None:
        steps = await backlog.take()
        await asyncio.sleep(0)
        backlog.done(steps)
        raise errors.ClusterUnavailableError("a program cannot be fetched now.")

    async def ended() -> None:
        backlog = Backlog(lambda revision: True, lambda one: False)
        await backlog.put(step(1))
        taking = asyncio.ensure_future(failing(backlog))
        await asyncio.sleep(0)
        await backlog.put(step(2))
        await asyncio.wait_for(backlog.empty(taking), 60)
        with pytest.raises(errors.ClusterUnavailableError):
            await taking
        backlog.clear()
        await backlog.put(step(3))
        taking = asyncio.ensure_future(failing(backlog))
        await backlog.empty(taking)
        await asyncio.gather(taking, return_exceptions=True)

    asyncio.run(ended())


@needs_etcd
def test_a_host_whose_disk_is_slow_changes_other_modules_without_waiting_for_it(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    """Nothing can be committed on b for a while: another process of this machine writes there."""
    with ExitStack() as stack:
        a = stack.enter_context(host(tmp_path / "a", cluster))
        b = stack.enter_context(host(tmp_path / "b", cluster))
        at_a, at_b = stack.enter_context(a.client()), stack.enter_context(b.client())
        also_at_b = stack.enter_context(b.client())
        at_b.register_module(module("acme.First"))
        in_step(a, b)
        with opened(b.path):
            at_a.register_module(module("acme.One"))
            patient(lambda: section(b)["newest"] >= cluster.modified(_HEAD))
            other, same = Registering(at_b, "acme.Two"), Registering(also_at_b, "acme.One", 1)
            other.start()
            patient(lambda: of_module("acme.Two", _PREFIX) in cluster.keys(_PREFIX.encode()))
            assert section(b)["applied"] < cluster.modified(_HEAD)
            same.start()
        for one in (other, same):
            one.join(60)
            assert one.failures == []
        with pytest.raises(errors.ConflictError):
            at_b.register_module(module("acme.One"), expected_version=1)
        in_step(a, b)
        assert section(b)["conflicts"] == 0
        assert shown(a.path) == shown(b.path)
        assert {name: kept[1] for name, kept in shown(a.path).items()} == {
            "acme.First": 1,
            "acme.One": 2,
            "acme.Two": 1,
        }
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


class Registering(threading.Thread):
    """A client that registers a module."""

    def __init__(self, client: WriterClient, name: str, expected: int | None = None) -> None:
        super().__init__(daemon=True)
        self._client, self._module, self._expected = client, module(name, estimated_duration=9), expected
        self.failures: list[RegistryError] = []

    def run(self) -> None:
        try:
            self._client.register_module(self._module, expected_version=self._expected)
        except RegistryError as error:
            self.failures.append(error)


def serve_at_a_gate(path: str, urls: list[str], manifests: str, gate: str) -> None:
    """In the daemon's process: its transactions wait until the file `gate` is there, as on a slow network."""
    from dspy_registry.writer.cluster.decision import Decision

    decide = Decision.of

    async def of(self: Decision, staged: Staged) -> Any:
        Path(f"{gate}.asked").touch()
        while not Path(gate).exists():
            await asyncio.sleep(0.01)
        return await decide(self, staged)

    Decision.of = of  # type: ignore[method-assign]
    serve_cluster(path, urls, None, manifests)


@needs_etcd
def test_a_group_is_staged_again_when_a_manifest_has_changed_what_it_read(tmp_path: Path, cluster: EtcdCluster) -> None:
    manifests, gate = tmp_path / "manifests", tmp_path / "gate"
    manifests.mkdir()

    def declare(duration: int) -> None:
        new = manifests / "one.tmp"
        new.write_text(f'[[modules]]\nname = "acme.Local"\nestimated_duration = {duration}\n')
        new.rename(manifests / "one.toml")

    def version(served: Served) -> int:
        with Registry(served.path) as registry:
            return registry.describe("acme.Local").provenance.version if "acme.Local" in registry else 0

    declare(1)
    with ExitStack() as stack:
        a = stack.enter_context(host(tmp_path / "a", cluster))
        arguments = (cluster.urls, str(manifests), str(gate))
        b = stack.enter_context(daemon_of(__name__, "serve_at_a_gate", tmp_path / "b", *arguments))
        at_a, at_b = stack.enter_context(a.client()), stack.enter_context(b.client())
        at_a.register_module(module("acme.First"))
        in_step(a, b)
        patient(lambda: version(b) == 1)
        with ThreadPoolExecutor(1) as pool:
            changed = module("acme.Local", estimated_duration=9)
            future = pool.submit(at_b.register_module, changed, expected_version=1)
            patient(Path(f"{gate}.asked").exists)
            declare(2)
            patient(lambda: version(b) == 2)
            at_a.register_module(module("acme.Other"))  # so b is refused once
            gate.touch()
            with pytest.raises(ConflictError):
                future.result()
        in_step(a, b)
        assert version(b) == 2
        assert "acme.Local" not in shown(a.path)


def test_a_cancellation_behind_a_stir_is_not_lost() -> None:
    """As at the stop: the own change has ended in the same moment."""

    async def run() -> None:
        backlog = Backlog(lambda revision: False, lambda step: False, longest=60)
        backlog.expect(True)
        task = asyncio.ensure_future(backlog.take())
        await backlog.put(Events([KeyValue(b"k", b"", 1)], 1))
        await asyncio.sleep(0.005)
        backlog.expect(False)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
