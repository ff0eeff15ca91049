"""Labels that clients set on one host mean the same on every host, and what they name is kept everywhere (I8)."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import LabelConflictError, Registry, RegistryError, errors
from dspy_registry.registry_store.labels import LabelUpdate
from dspy_registry.writer.cluster.global_labels import GlobalLabel, label_codec
from dspy_registry.writer.cluster.global_rows import part_key, version_key
from tests.conftest import violations
from tests.support.daemon_process import Served, daemon_of, module
from tests.support.etcd import EtcdCluster, host, in_step, needs_etcd, patient, section, shown
from tests.support.lossy_proxy import lossy

pytestmark = needs_etcd
_RECORDS = b"/dspy-registry/d/r/"
NAME = "acme.One"


def labels(folder: Path, name: str = NAME) -> dict[str, Any]:
    """What readers of a host see of a module's labels: the buckets, and the records of the versions."""
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        if name not in snapshot:
            return {}
        return {
            label: (found.runs, [snapshot.get_module(f"{name}@{version}") for version in found.versions])
            for label, found in snapshot.labels(name).items()
        }


def versions_kept(cluster: EtcdCluster, name: str = NAME) -> list[int]:
    """The versions of a module that have records of their own in the cluster."""
    found = cluster.keys(_RECORDS + b"versions/" + part_key(name, ""))
    return sorted(int(key[-10:]) for key in found)


def grow(client: Any, first: int, last: int, name: str = NAME) -> None:
    """Register so many versions; each has its number as duration."""
    for number in range(first, last + 1):
        client.register_module(module(name, estimated_duration=number), expected_version=number - 1)


def test_a_label_means_the_same_on_every_host_and_keeps_what_it_names(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        grow(at_a, 1, 3)
        at_a.set_label(NAME, "live", {2: 90, 3: 10})
        at_a.set_labels([LabelUpdate(NAME, "live", {2: 80, 3: 20}), LabelUpdate(NAME, "old", 1, 0)])
        in_step(a, b)
        assert labels(a.path) == labels(b.path)
        grow(at_b, 4, 40)
        in_step(b, a)
        with host(tmp_path / "late", cluster) as late:
            in_step(b, late)
            with Registry(a.path) as first, Registry(late.path) as last:
                for key in map(str, range(200)):
                    asked = f"{NAME}@live"
                    assert first.resolve(asked, key=key) == last.resolve(asked, key=key)
                assert last.get_module(f"{NAME}@old").estimated_duration == 1
            assert labels(a.path) == labels(b.path) == labels(late.path)
            assert versions_kept(cluster) == [1, 2, 3]
            with late.client() as at_late:
                at_late.set_label(NAME, "live", 40, expected={2: 80, 3: 20})
                at_late.remove_label(NAME, "old")
            in_step(late, a, b)
            assert versions_kept(cluster) == []
            for served in (a, b, late):
                assert list(labels(served.path)) == ["live"]
                with Registry(served.path) as registry, pytest.raises(errors.UnknownVersionError):
                    registry.get_module(f"{NAME}@2")
                assert violations(served.path) == []
    for name in ("a", "b", "late"):
        assert violations(tmp_path / name) == []


@pytest.mark.full
def test_of_two_hosts_that_expect_the_same_one_sets_the_label(tmp_path: Path, cluster: EtcdCluster) -> None:
    with ExitStack() as stack:
        hosts = [stack.enter_context(host(tmp_path / name, cluster)) for name in ("a", "b")]
        clients = [stack.enter_context(served.client()) for served in hosts]
        grow(clients[0], 1, 12)
        clients[0].set_label(NAME, "live", 1)
        in_step(*hosts)
        at = threading.Barrier(2)
        outcomes: list[list[bool]] = [[], []]

        def run(number: int) -> None:
            for step in range(1, 12):
                at.wait()
                try:
                    clients[number].set_label(NAME, "live", step + 1, expected=step)
                    outcomes[number].append(True)
                except LabelConflictError:
                    outcomes[number].append(False)
                at.wait()
                in_step(*hosts)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [sum(pair) for pair in zip(*outcomes, strict=True)] == [1] * 11
        in_step(*hosts)
        assert [labels(served.path) for served in hosts] == [labels(hosts[0].path)] * 2
        with Registry(hosts[1].path) as registry:
            assert registry.resolve(f"{NAME}@live").version == 12
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


@pytest.mark.full
def test_unregistering_beside_a_label_leaves_no_label_without_its_module(tmp_path: Path, cluster: EtcdCluster) -> None:
    with ExitStack() as stack:
        hosts = [stack.enter_context(host(tmp_path / name, cluster)) for name in ("a", "b")]
        clients = [stack.enter_context(served.client()) for served in hosts]
        for round_ in range(6):
            name = f"acme.Round{round_}"
            grow(clients[0], 1, 2, name)
            in_step(*hosts)

            def label(name: str = name) -> None:
                with suppress(RegistryError):
                    clients[1].set_label(name, "live", 1)

            beside = threading.Thread(target=label)
            beside.start()
            clients[0].unregister_module(name)
            beside.join()
            in_step(*hosts)
            in_step(*reversed(hosts))
            assert labels(hosts[0].path, name) == labels(hosts[1].path, name) == {}
            assert versions_kept(cluster, name) == []
            clients[1].register_module(module(name, estimated_duration=3))
            in_step(*reversed(hosts))
            assert labels(hosts[0].path, name) == labels(hosts[1].path, name) == {}
            for served in hosts:
                assert violations(served.path) == []


@pytest.mark.full
def test_a_host_that_was_away_for_longer_than_the_compaction_has_the_labels(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        grow(at_a, 1, 20)
        for name in ("acme.Gone", "acme.Again"):
            grow(at_a, 1, 20, name)
            at_a.set_label(name, "live", 7)
        at_a.set_label(NAME, "live", 5)
        at_a.set_label(NAME, "old", 6)
        with host(tmp_path / "b", cluster) as b:
            in_step(a, b)
        grow(at_a, 21, 60)
        at_a.set_label(NAME, "live", 50, expected=5)
        at_a.set_label(NAME, "new", 58)
        at_a.unregister_module("acme.Gone")
        at_a.unregister_module("acme.Again")
        grow_again(at_a, "acme.Again")
        cluster.compact()
        with host(tmp_path / "b", cluster) as b, b.client() as at_b:
            in_step(a, b)
            assert section(b)["lists"] == 1
            for name in (NAME, "acme.Gone", "acme.Again"):
                assert labels(a.path, name) == labels(b.path, name)
            assert violations(b.path) == []
            with Registry(b.path) as registry:
                assert registry.get_module(f"{NAME}@live").estimated_duration == 50
                assert registry.get_module(f"{NAME}@old").estimated_duration == 6
            at_b.remove_label(NAME, "old")
            assert violations(b.path) == []
            at_b.unregister_module(NAME)
            assert violations(b.path) == []
            in_step(b, a)
            assert labels(a.path) == labels(b.path) == {}
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


def grow_again(client: Any, name: str) -> None:
    client.register_module(module(name, estimated_duration=100))
    client.register_module(module(name, estimated_duration=101))
    client.set_label(name, "again", 21)


@pytest.mark.full
def test_a_label_of_a_manifest_stays_under_the_clusters(tmp_path: Path, cluster: EtcdCluster) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    for file, name, label, version in (("own", "dspy.Predict", "own", 1), ("theirs", NAME, "live", 3)):
        declared = f"labels:\n- module: {name}\n  label: {label}\n  versions: {version}\n"
        (manifests / f"{file}.yaml").write_text(declared, encoding="utf-8")
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        grow(at_a, 1, 3)
        served = daemon_of("tests.support.etcd", "serve_cluster", tmp_path / "b", cluster.urls, None, str(manifests))
        with served as b, b.client() as at_b:
            in_step(a, b)
            patient(lambda: "own" in labels(b.path, "dspy.Predict"))
            assert "own" not in labels(a.path, "dspy.Predict")
            with pytest.raises(errors.InvalidArgumentError, match=r"manifest:own\.yaml"):
                at_b.remove_label("dspy.Predict", "own")
            with pytest.raises(errors.InvalidArgumentError, match="core"):
                at_b.set_label("dspy.Predict", "mine", 1)
            patient(lambda: labels(b.path) and labels(b.path)["live"][0] == ((3, 10_000),))
            assert labels(a.path) == {}
            grow(at_a, 4, 30)
            at_a.set_label(NAME, "live", 29, expected=0)
            in_step(a, b)
            assert labels(a.path) == labels(b.path)
            assert violations(b.path) == []
            at_b.remove_label(NAME, "live")
            in_step(b, a)
            assert labels(a.path) == {}
            at_b.set_label(NAME, "live", 30, expected=0)
            in_step(b, a)
            assert labels(a.path) == labels(b.path)
            assert violations(b.path) == []
    assert violations(tmp_path / "a") == violations(tmp_path / "b") == []


@pytest.mark.full
def test_a_label_that_this_release_cannot_read_is_reported_and_the_last_good_one_stays(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    key = _RECORDS + b"labels/" + part_key(NAME, "live")
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        grow(at_a, 1, 2)
        at_a.set_label(NAME, "live", 1)
        cluster.put(key, b"of another release")
        patient(lambda: set(section(a)["set_aside"]) == {f"labels/{NAME}@live"})
        assert labels(a.path)["live"][0] == ((1, 10_000),)
        for change in (
            lambda: at_a.set_label(NAME, "live", 2),
            lambda: at_a.remove_label(NAME, "live"),
            lambda: at_a.unregister_module(NAME),
        ):
            with pytest.raises(errors.ClusterMembershipError, match=r"acme\.One@live"):
                change()
        assert cluster.keys(key) == {key: b"of another release"}
        at_a.set_label(NAME, "other", 2)
        grow(at_a, 3, 30)
        assert labels(a.path)["live"][1][0].estimated_duration == 1
        assert violations(a.path) == []
        cluster.put(key, label_codec.dump(GlobalLabel(((30, 10_000),))))
        patient(lambda: section(a)["errors"] == 0)
        assert labels(a.path)["live"][0] == ((30, 10_000),)
        assert violations(a.path) == []


@pytest.mark.full
def test_a_version_that_this_release_cannot_read_sets_its_label_aside(tmp_path: Path, cluster: EtcdCluster) -> None:
    place = _RECORDS + b"versions/" + version_key(NAME, 2)
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        grow(at_a, 1, 30)
        at_a.set_label(NAME, "live", 29)
        sound = cluster.keys(_RECORDS + b"versions/")[_RECORDS + b"versions/" + version_key(NAME, 29)]
        cluster.put(place, b"of another release")
        cluster.put(_RECORDS + b"labels/" + part_key(NAME, "live"), label_codec.dump(GlobalLabel(((2, 10_000),))))
        patient(lambda: set(section(a)["set_aside"]) == {f"labels/{NAME}@live", f"versions/{NAME}@2"})
        assert labels(a.path)["live"][0] == ((29, 10_000),)
        with pytest.raises(errors.ClusterMembershipError):
            at_a.set_label(NAME, "live", 29)
        grow(at_a, 31, 60)
        assert cluster.keys(place) == {place: b"of another release"}
        assert violations(a.path) == []
        assert sound


@pytest.mark.full
def test_a_daemon_that_was_killed_between_transaction_and_apply_has_the_label(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    """The transaction goes through, and nothing of it reaches the host until its daemon is killed."""
    with lossy(cluster.urls[0]) as proxy:
        with served_at(tmp_path / "a", proxy.url) as a, a.client() as at_a:
            grow(at_a, 1, 30)
            at_a.set_label(NAME, "live", 15)
            proxy.is_mute = True
            asked = threading.Thread(target=asks(a, {29: 50, 30: 50}))
            asked.start()
            patient(lambda: versions_kept(cluster) == [29])
            a.kill()
            asked.join()
        assert labels(tmp_path / "a")["live"][0] == ((15, 10_000),)
        assert violations(tmp_path / "a") == []
        proxy.is_mute = False
        with served_at(tmp_path / "a", proxy.url) as a:
            patient(lambda: labels(a.path)["live"][0] == ((29, 5000), (30, 5000)))
            assert violations(a.path) == []


def served_at(folder: Path, *urls: str) -> Any:
    return daemon_of("tests.support.etcd", "serve_cluster", folder, list(urls))


def asks(served: Served, versions: Any) -> Any:
    def run() -> None:
        with suppress(RegistryError), served.client(timeout=5) as client:
            client.set_label(NAME, "live", versions)

    return run


@pytest.mark.full
def test_what_a_release_or_a_rename_does_to_labels(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        grow(at_a, 1, 30)
        at_a.set_label(NAME, "live", {20: 1, 29: 1})
        in_step(a, b)
        at_b.rename_module(NAME, "acme.Other")
        in_step(b, a)
        assert labels(a.path, "acme.Other") == labels(b.path, "acme.Other")
        with Registry(a.path) as registry:
            assert {registry.get_module(f"acme.Other@{number}").estimated_duration for number in (1, 2)} == {20, 29}
            assert registry.resolve("acme.Other").version == 3
        assert versions_kept(cluster) == []
        at_a.register_module(module("dspy.Predict", estimated_duration=1))
        at_a.set_label("dspy.Predict", "live", shown(a.path)["dspy.Predict"][1])
        in_step(a, b)
        at_b.release("dspy.Predict")
        in_step(b, a)
        assert labels(a.path, "dspy.Predict") == labels(b.path, "dspy.Predict") == {}
        for served in (a, b):
            assert violations(served.path) == []


@pytest.mark.full
def test_many_labels_with_large_versions_are_one_change(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a:
        text = {"text": "x" * 300_000}
        for number in range(1, 13):
            at_a.register_module(module(NAME, estimated_duration=number, metadata=text))
        at_a.set_labels([LabelUpdate(NAME, f"l{number}", number) for number in range(1, 12)])
        in_step(a, b)
        assert len(labels(b.path)) == 11
        assert labels(a.path) == labels(b.path)
        patient(lambda: not cluster.keys(b"/dspy-registry/d/b/"))
        with host(tmp_path / "late", cluster) as late:
            in_step(a, late)
            assert labels(a.path) == labels(late.path)
            at_a.unregister_module(NAME)
            in_step(a, b, late)
            assert versions_kept(cluster) == []
            for served in (a, b, late):
                assert violations(served.path) == []
