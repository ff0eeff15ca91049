"""What a host of this release cannot read, what comes late or twice, and how a host says goodbye."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dspy_registry import errors
from dspy_registry.registry_store.cluster_rows import Position
from dspy_registry.registry_store.codec import encode, seal
from dspy_registry.writer.cluster.batches import Batch, batch_codec, in_pieces
from dspy_registry.writer.cluster.circuits import GlobalCircuit
from dspy_registry.writer.cluster.engine import KeyValue
from dspy_registry.writer.cluster.following import Applied, adopt_all, advance, follow, staged_position
from dspy_registry.writer.cluster.keys import Head, Keys, head_codec
from dspy_registry.writer.cluster.membership import stage_join
from dspy_registry.writer.cluster.records import KINDS, GlobalModule
from dspy_registry.writer.draft import Draft
from dspy_registry.writer.store import Store
from tests.conftest import violations
from tests.support.daemon_process import module
from tests.support.etcd import EtcdCluster, etcd, host, in_step, needs_etcd, patient, section, shown
from tests.support.health_helpers import states
from tests.support.selection import each

pytestmark = needs_etcd
PREFIX = b"/dspy-registry/"
MARKER = PREFIX + b"d/b/0123456789abcdef/id"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd(tmp_path / "etcd") as found:
        yield found


def sound_batch(*names: str) -> bytes:
    """A piece of a batch that registers these modules."""
    records = {
        (b"modules", name.encode()): KINDS[b"modules"].codec.dump(GlobalModule(1, place, encode(module(name))))
        for place, name in enumerate(names)
    }
    return in_pieces(records)[0]


@pytest.mark.parametrize("value", [b"of another release", KINDS[b"modules"].codec.dump(GlobalModule(1, 1))])
def test_a_module_record_without_a_name_stops_no_host(tmp_path: Path, cluster: EtcdCluster, value: bytes) -> None:
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.One"))
        cluster.put(PREFIX + b"d/r/modules/", value)
        at_a.register_module(module("acme.Two"))
        with host(tmp_path / "b", cluster) as b:  # it meets the record in a list, the other one in the watch
            in_step(b, a)
            cluster.delete(PREFIX + b"d/r/modules/")
            at_a.register_module(module("acme.Three"))
            in_step(b, a)
            assert list(shown(a.path)) == list(shown(b.path)) == ["acme.One", "acme.Two", "acme.Three"]


@pytest.mark.parametrize("part", each(3, ["marker", "piece", "missing"]))
def test_a_batch_that_cannot_be_read_stops_no_host(tmp_path: Path, cluster: EtcdCluster, part: str) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a:
        at_a.register_module(module("acme.One"))
        if part == "piece":
            cluster.put(PREFIX + b"b/0123456789abcdef/id/000000", b"of another release")
        cluster.put(MARKER, b"of another release" if part == "marker" else batch_codec.dump(Batch(1, 2)))
        cluster.put(
            PREFIX + b"d/r/modules/acme.Two",
            KINDS[b"modules"].codec.dump(GlobalModule(1, 1 << 30, encode(module("acme.Two")))),
        )
        for served in (a, b):
            patient(lambda served=served: "acme.Two" in shown(served.path))
            assert set(section(served)["set_aside"]) == {"batches/0123456789abcdef/id"}
            assert section(served)["error"] == ""
        with pytest.raises(errors.ClusterMembershipError, match="batch"):
            at_a.register_module(module("acme.Three"))
        a.end()
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:  # it is not forgotten, and not in the way
        patient(lambda: section(a)["error"] == "")
        assert set(section(a)["set_aside"]) == {"batches/0123456789abcdef/id"}
        cluster.delete(MARKER)
        patient(lambda: section(a)["set_aside"] == {})
        at_a.register_module(module("acme.Three"))
        assert list(shown(a.path)) == ["acme.One", "acme.Two", "acme.Three"]
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


def test_a_batch_is_taken_over_by_a_release_that_can_read_it(tmp_path: Path, cluster: EtcdCluster) -> None:
    """The piece comes late here. A release that reads more than the last one finds the same."""
    with host(tmp_path / "a", cluster) as a:
        cluster.put(MARKER, batch_codec.dump(Batch(1, 2)))
        patient(lambda: section(a)["set_aside"])
        a.end()
    cluster.put(PREFIX + b"b/0123456789abcdef/id/000000", sound_batch("acme.One", "acme.Two"))
    with host(tmp_path / "a", cluster) as a:
        patient(lambda: list(shown(a.path)) == ["acme.One", "acme.Two"])
        patient(lambda: section(a)["set_aside"] == {})
    assert violations(tmp_path / "a") == []


@pytest.mark.full
def test_a_record_of_another_release_in_a_batch_is_set_aside_alone(tmp_path: Path, cluster: EtcdCluster) -> None:
    records = {
        (b"modules", b"acme.One"): KINDS[b"modules"].codec.dump(GlobalModule(1, 0, encode(module("acme.One")))),
        (b"modules", b"acme.Two"): b"of another release",
    }
    with host(tmp_path / "a", cluster) as a:
        cluster.put(PREFIX + b"b/0123456789abcdef/id/000000", in_pieces(records)[0])
        cluster.put(MARKER, batch_codec.dump(Batch(1, 1)))
        patient(lambda: list(shown(a.path)) == ["acme.One"])
        assert set(section(a)["set_aside"]) == {"modules/acme.Two"}
    assert violations(tmp_path / "a") == []


@pytest.mark.full
def test_a_head_of_another_release_stops_no_new_host(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.One"))
        cluster.put(PREFIX + b"d/head", b"of another release")
        with host(tmp_path / "b", cluster) as b:
            patient(lambda: list(shown(b.path)) == ["acme.One"])
            assert section(b)["error"] == ""


def of_later(record: Any) -> bytes:
    """A record as a later release writes it, with one more field."""
    return seal(encode([*msgspec.msgpack.decode(encode(record)), "more"]))


@pytest.mark.full
def test_two_releases_live_side_by_side(tmp_path: Path, cluster: EtcdCluster) -> None:
    """A later release adds fields at the end of what it writes, and kinds of keys. What is known is taken over."""
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.One"))
        head = of_later(Head(b"c" * 16, 2, "0123456789abcdef", 0))
        info = encode([*msgspec.msgpack.decode(encode(module("acme.Later"))), "more"])
        module_of_later, circuit_of_later = of_later(GlobalModule(1, 1 << 30, info)), of_later(GlobalCircuit(600.0, 5))
        cluster.put(PREFIX + b"d/r/modules/acme.Later", module_of_later)
        cluster.put(PREFIX + b"d/head", head)
        cluster.put(PREFIX + b"d/h/0123456789abcdef", b'{"name":"n","release":"9","pid":1,"applied":3,"more":[]}')
        cluster.put(PREFIX + b"d/c/acme.Later/1/0123456789abcdef", circuit_of_later)
        cluster.put(PREFIX + b"d/wonders/x", b"more")
        patient(lambda: section(a)["hosts"].get("0123456789abcdef", {}).get("release") == "9")
        patient(lambda: states(a.path) == {("acme.Later", 1): "open"})
        assert list(shown(a.path)) == ["acme.One", "acme.Later"]
        assert (section(a)["errors"], section(a)["error"], section(a)["changes"]) == (0, "", 2)
        at_a.register_module(module("acme.Later", pool_type="neural"), expected_version=1)
    assert violations(tmp_path / "a") == []


def test_what_cannot_be_applied_stays_in_the_status(tmp_path: Path, cluster: EtcdCluster) -> None:
    """The registry follows a revision that the cluster has not reached: etcd came back from an older backup."""
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.One"))
        cluster_id, name = section(a)["cluster"], section(a)["host"]
        a.end()
    store = Store(tmp_path / "a")
    store.committer.commit(lambda draft: stage_join(draft, Position(cluster_id, name, 10**6, 1, 1), ()))
    store.close()
    with host(tmp_path / "a", cluster) as a:
        patient(lambda: "older backup" in section(a)["error"])
        reconnects = section(a)["reconnects"]
        patient(lambda: section(a)["reconnects"] > reconnects + 2)
        assert "older backup" in section(a)["error"]


def changes_of(keys: Keys, revision: int, version: int) -> list[KeyValue]:
    value = KINDS[b"modules"].codec.dump(
        GlobalModule(version, 1, encode(module("acme.One", estimated_duration=version)))
    )
    head = head_codec.dump(Head(os.urandom(16), version, keys.host.decode(), 0))
    return [KeyValue(keys.record(b"modules", b"acme.One"), value, revision), KeyValue(keys.head, head, revision)]


def test_the_position_never_moves_back_and_what_comes_late_is_applied_once(registry_folder: Path) -> None:
    """A stage of a mirror that was cancelled may share its commit with the one that stores how far the watch was."""
    keys, start = Keys("/dspy-registry/", "0123456789abcdef"), Position("c", "0123456789abcdef", 10)
    store = Store(registry_folder)
    try:
        store.committer.commit(lambda draft: stage_join(draft, start, ()))
        found: list[Position | None] = []

        def stage(draft: Draft) -> None:
            for version, revision in ((1, 20), (2, 30)):
                child = draft.child()
                follow(child, keys, start, changes_of(keys, revision, version), revision)
                draft.absorb(child)
            for act in (
                lambda one: advance(one, 14),
                lambda one: follow(one, keys, start, changes_of(keys, 20, 1), 20),
                lambda one: adopt_all(one, keys, Position("c", "0123456789abcdef", 15), [], []),
            ):
                child = draft.child()
                act(child)
                draft.absorb(child)
                found.append(staged_position(draft))

        store.committer.commit(stage)
        assert found == [Position("c", "0123456789abcdef", 30, 30, 2)] * 3
        store.committer.commit(lambda draft: _late(draft, keys, start))
    finally:
        store.close()
    assert shown(registry_folder)["acme.One"][1:] == (2, 30)


def _late(draft: Draft, keys: Keys, start: Position) -> Applied:
    return follow(draft, keys, start, changes_of(keys, 20, 1), 20)


@pytest.mark.full
def test_a_host_says_goodbye_also_for_a_daemon_that_was_killed(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "b", cluster) as b:
        with host(tmp_path / "a", cluster) as a:
            in_step(b, a)
            name = section(a)["host"]
            patient(lambda: name in section(b)["hosts"])
            for lease in cluster.post("/v3/lease/leases", {})["leases"]:
                cluster.post("/v3/lease/revoke", {"ID": lease["ID"]})
            assert a.end() == 0
        patient(lambda: name not in section(b)["hosts"])
        assert section(b)["error"] == ""
