"""Hosts that share one registry on a real etcd: each is a daemon with its own folder."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ConflictError, Policy, Registry, UnknownModuleError, errors
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.protocol import Done, SetAlias
from dspy_registry.writer.cluster.batches import Batch, batch_codec, copy_out, in_pieces, uncopied
from dspy_registry.writer.cluster.engine import KeyValue, Outcome
from dspy_registry.writer.cluster.etcd import Etcd
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.options import ClusterOptions
from dspy_registry.writer.cluster.records import KINDS, GlobalAlias, GlobalModule
from tests.conftest import violations
from tests.support.daemon_process import module, registration
from tests.support.etcd import EtcdCluster, host, in_step, needs_etcd, patient, section, shown

pytestmark = needs_etcd


def test_what_is_registered_on_one_host_is_read_on_every_host(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        at_a.register_module(module("acme.One"))
        with Registry(a.path) as registry:
            assert "acme.One" in registry  # acknowledged, so this host shows it
        in_step(a, b)
        at_b.register_module(module("acme.Two"))
        at_b.register_module(module("acme.One", pool_type="neural"), expected_version=1)
        at_b.set_alias("uno", "acme.One")
        in_step(b, a)
        for folder in (a.path, b.path):
            with Registry(folder) as registry:
                assert registry.get_module("uno").pool_type == "neural"
        assert shown(a.path) == shown(b.path)
        assert [version for _, version, _ in shown(a.path).values()] == [2, 1]
        with pytest.raises(ConflictError):
            at_a.register_module(module("acme.One"), expected_version=1)
        at_a.unregister_module("acme.One")
        in_step(a, b)
        with Registry(b.path) as registry, pytest.raises(UnknownModuleError):
            registry.get_module("uno")
        with pytest.raises(UnknownModuleError):
            at_b.unregister_module("acme.One")
        at_b.register_module(module("acme.One"))
        in_step(b, a)
        assert shown(a.path) == shown(b.path)
        assert list(shown(a.path)) == ["acme.Two", "acme.One"]
        assert shown(a.path)["acme.One"][1] == 3
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


def test_a_request_that_comes_again_takes_effect_once(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, a.peer(b"c" * 16) as peer:
        (first,) = peer.ask(registration(1, module("acme.One"), 0))
        assert isinstance(first, Done)
        a.kill()
    with host(tmp_path / "a", cluster) as a, a.peer(b"c" * 16) as peer:
        (again,) = peer.ask(registration(1, module("acme.One"), 0))
        assert isinstance(again, Done)
        (other,) = peer.ask(SetAlias(2, 2, "uno", "acme.One"))
        assert isinstance(other, Done)
        assert [version for _, version, _ in shown(a.path).values()] == [1]


@pytest.mark.full
def test_a_local_layer_stays_under_the_global_record(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        at_a.register_module(module("dspy.Predict", pool_type="neural"), expected_version=0)
        in_step(a, b)
        with Registry(b.path) as registry:
            assert registry.get_module("dspy.Predict").pool_type == "neural"
        at_b.unregister_module("dspy.Predict")
        in_step(b, a)
        for folder in (a.path, b.path):
            with Registry(folder) as registry:
                assert registry.get_module("dspy.Predict").pool_type == "general"
        with pytest.raises(errors.InvalidArgumentError, match="core"):
            at_a.unregister_module("dspy.Predict")


@pytest.mark.full
def test_a_host_that_was_away_for_longer_than_the_compaction_comes_back(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.Gone"))
        at_a.register_module(module("acme.Stays"))
        with host(tmp_path / "b", cluster) as b:
            in_step(a, b)
        for number in range(20):
            at_a.register_module(module("acme.Stays", estimated_duration=number))
        at_a.unregister_module("acme.Gone")
        at_a.set_alias("stays", "acme.Stays")
        cluster.compact()
        with host(tmp_path / "b", cluster) as b:
            in_step(a, b)
            assert shown(a.path) == shown(b.path)
            assert section(b)["lists"] == 1
            with Registry(b.path) as registry:
                assert registry.get_module("stays").estimated_duration == 19
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


@pytest.mark.full
def test_what_this_release_cannot_read_is_reported_and_the_last_good_record_stays(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.One"))
        cluster.put(b"/dspy-registry/d/r/modules/acme.One", b"of another release")
        cluster.put(b"/dspy-registry/d/r/wonders/acme.One", b"of another release")
        patient(lambda: section(a)["errors"] == 2)
        assert set(section(a)["set_aside"]) == {"modules/acme.One", "wonders/acme.One"}
        assert list(shown(a.path)) == ["acme.One"]
        with pytest.raises(errors.ClusterMembershipError, match=r"acme\.One"):
            at_a.register_module(module("acme.One", pool_type="neural"))
    assert violations(tmp_path / "a") == []


def test_policies_are_global(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        at_a.register_modules([module("acme.One"), module("acme.Two")])
        at_a.set_policy("acme.*", Policy(max_concurrency=3))
        in_step(a, b)
        with Registry(b.path) as registry:
            assert registry.policy("acme.Two").max_concurrency == 3
        at_b.remove_policy("acme.*")
        in_step(b, a)
        with Registry(a.path) as registry:
            assert registry.policy("acme.Two").max_concurrency is None
        assert shown(a.path) == shown(b.path)
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


@pytest.mark.full
def test_a_batch_above_one_transaction_is_one_change(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        at_a.register_module(module("acme.M5"))
        batch = [module(f"acme.M{number}", metadata={"text": "x" * 600}) for number in range(3000)]
        at_a.register_modules(batch)
        in_step(a, b)
        found = {name: kept[:2] for name, kept in shown(a.path).items()}
        assert found == {name: kept[:2] for name, kept in shown(b.path).items()}
        assert (len(found), found["acme.M5"][1], found["acme.M6"][1]) == (3000, 2, 1)
        with Registry(b.path) as registry, registry.snapshot() as snapshot:
            assert max(len(change.modules) for change in snapshot.changes_since(0)) == 3000
        patient(lambda: not cluster.keys(b"/dspy-registry/b/") and not cluster.keys(b"/dspy-registry/d/b/"))
        at_b.register_module(module("acme.M7"), expected_version=1)
        in_step(b, a)
        with host(tmp_path / "late", cluster) as late:
            in_step(b, late)
            names = ["acme.M5", *(info.name for info in batch if info.name != "acme.M5")]
            assert list(shown(late.path)) == list(shown(a.path)) == names
    for name in ("a", "b", "late"):
        assert violations(tmp_path / name) == []


@pytest.mark.full
def test_a_batch_that_was_not_copied_out_is_read_from_its_pieces(tmp_path: Path, cluster: EtcdCluster) -> None:
    """Its host was killed behind the marker. What changed one of its modules since stays."""
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.M1"))
        position = section(a)
    keys = Keys("/dspy-registry/", position["host"])
    records = {
        (b"modules", f"acme.M{number}".encode()): KINDS[b"modules"].codec.dump(
            GlobalModule(2, number, encode(module(f"acme.M{number}", pool_type="neural")))
        )
        for number in range(1, 4)
    }
    name = keys.host + b"/id"
    cluster.put(keys.pieces + name + b"/000000", in_pieces(records)[0])
    cluster.put(keys.batches + name, batch_codec.dump(Batch(1, 2)))
    cluster.put(keys.pieces + keys.host + b"/unseen/000000", b"never shown")
    cluster.put(keys.record(b"modules", b"acme.M3"), KINDS[b"modules"].codec.dump(GlobalModule(3, 5, None)))
    with host(tmp_path / "b", cluster) as b:
        patient(lambda: set(shown(b.path)) == {"acme.M1", "acme.M2"})
        with host(tmp_path / "a", cluster) as a, a.client() as at_a:
            patient(lambda: set(shown(a.path)) == {"acme.M1", "acme.M2"})
            at_a.set_alias("two", "acme.M2")
            assert set(shown(a.path)) == {"acme.M1", "acme.M2"}
            assert not cluster.keys(keys.pieces)
            assert not cluster.keys(keys.batches)
        assert {name: kept[:2] for name, kept in shown(tmp_path / "a").items()} == {
            name: kept[:2] for name, kept in shown(b.path).items()
        }


@pytest.mark.full
@pytest.mark.parametrize("first", [1, 2], ids=["older copied first", "newer copied first"])
def test_what_a_batch_is_copied_to_is_as_old_as_the_batch(tmp_path: Path, cluster: EtcdCluster, first: int) -> None:
    """Two batches hold one module, and each is copied out when both are shown already."""
    keys = Keys("/dspy-registry/", "0123456789abcdef")
    with host(tmp_path / "a", cluster) as a:
        patient(lambda: section(a)["error"] == "" and section(a)["hosts"])
        for version in (1, 2):
            record = GlobalModule(version, 1, encode(module("acme.One", estimated_duration=version)))
            piece = in_pieces({(b"modules", b"acme.One"): KINDS[b"modules"].codec.dump(record)})[0]
            name = keys.host + b"/%d" % version
            cluster.put(keys.pieces + name + b"/000000", piece)
            cluster.put(keys.batches + name, batch_codec.dump(Batch(1, version)))
        for version in (first, 3 - first):
            asyncio.run(copied_out(cluster, keys, keys.batches + keys.host + b"/%d" % version))
            with host(tmp_path / f"late{version}", cluster) as late:
                for served in (a, late):
                    patient(lambda served=served: "acme.One" in shown(served.path))
                    patient(lambda served=served: shown(served.path)["acme.One"][1] == 2)
                assert shown(a.path) == shown(late.path)
        assert not cluster.keys(keys.pieces)
    assert violations(tmp_path / "a") == []


@pytest.mark.full
def test_a_batch_over_the_copies_of_an_older_one_is_copied_together(cluster: EtcdCluster) -> None:
    """Else each of its records is asked for and put alone, and the host changes nothing meanwhile."""
    keys = Keys("/dspy-registry/", "0123456789abcdef")
    names = [f"acme.M{number}" for number in range(110)]
    kept = names[0].encode()
    for version in (1, 2):
        codec = KINDS[b"modules"].codec
        records = {(b"modules", name.encode()): codec.dump(GlobalModule(version, 1, b"")) for name in names}
        name = keys.host + b"/%d" % version
        cluster.put(keys.pieces + name + b"/000000", in_pieces(records)[0])
        cluster.put(keys.batches + name, batch_codec.dump(Batch(1, version)))
    cluster.put(keys.record(b"modules", kept), b"newer than both")
    asyncio.run(copied_out(cluster, keys, keys.batches + keys.host + b"/1"))
    assert asyncio.run(copied_out(cluster, keys, keys.batches + keys.host + b"/2")) <= 6
    found = cluster.keys(keys.record(b"modules", b""))
    values = {key: uncopied(KeyValue(key, value, 0)).value for key, value in found.items()}
    assert values.pop(keys.record(b"modules", kept)) == b"newer than both"
    assert {codec.load(value).version for value in values.values()} == {2}
    assert len(values) == 109


class Counting(Etcd):
    """It counts transactions."""

    transactions = 0

    async def transact(self, *arguments: Any, **options: Any) -> Outcome:
        self.transactions += 1
        return await super().transact(*arguments, **options)


async def copied_out(cluster: EtcdCluster, keys: Keys, marker: bytes) -> int:
    """How many transactions it took."""
    engine = Counting(ClusterOptions(endpoints=tuple(cluster.urls)))
    (found,) = (await engine.range_at(marker)).items
    await copy_out(engine, keys, found)
    await engine.close()
    return engine.transactions


@pytest.mark.full
def test_an_alias_waits_for_its_module(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module("acme.One"))
        value = KINDS[b"aliases"].codec.dump(GlobalAlias("acme.Later"))
        cluster.put(b"/dspy-registry/d/r/aliases/later", value)
        patient(lambda: section(a)["errors"] == 1)
        at_a.register_module(module("acme.Later"))
        patient(lambda: section(a)["errors"] == 0)
        with Registry(a.path) as registry:
            assert registry.get_module("later").name == "acme.Later"
