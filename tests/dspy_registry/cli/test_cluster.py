"""`cluster seed`, `join`, `leave`, `status`, and `serve --cluster`, on a real etcd."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dspy_registry import Registry, RegistryWriter, WriterClient, errors
from tests.conftest import violations
from tests.support import command
from tests.support.daemon_process import module
from tests.support.etcd import EtcdCluster, etcd, free_ports, needs_etcd, patient, shown


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EtcdCluster]:
    with etcd(tmp_path / "etcd") as found:
        yield found


@contextmanager
def serving(folder: Path, cluster: EtcdCluster) -> Iterator[None]:
    arguments = [*command.COMMAND, "serve", "--cluster", ",".join(cluster.urls), "--path", str(folder)]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        patient(lambda: command.run("cluster", "status", "--path", folder).returncode == 0)
        yield
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.full
@needs_etcd
def test_an_existing_registry_becomes_the_first_content(tmp_path: Path, cluster: EtcdCluster) -> None:
    first, second, url = tmp_path / "first", tmp_path / "second", cluster.urls[0]
    with RegistryWriter(first) as writer:
        writer.register_modules([module(f"acme.M{number}") for number in range(200)])
        writer.register_module(module("acme.M1", pool_type="neural"))
        writer.set_alias("one", "acme.M1")
        writer.set_implications({"hard_words": ["words"]})
    before = {name: kept[:2] for name, kept in shown(first).items()}
    refused = command.run("cluster", "join", "--cluster", url, "--path", first)
    assert refused.returncode == 1
    assert "cluster seed" in refused.stderr
    assert command.answer("cluster", "seed", "--cluster", url, "--path", first)["records"] == 202
    assert command.answer("cluster", "seed", "--cluster", url, "--path", first)["records"] == 202
    with serving(first, cluster), serving(second, cluster):
        patient(lambda: len(shown(second)) == 200)
        assert {name: kept[:2] for name, kept in shown(first).items()} == before
        patient(lambda: shown(first) == shown(second))
        assert list(shown(second)) == list(before)
        with Registry(second) as registry:
            assert registry.get_module("one").pool_type == "neural"
        with WriterClient(second) as client:
            client.unregister_module("acme.M1")
        patient(lambda: "acme.M1" not in shown(first))
    with pytest.raises(errors.ClusterMembershipError):
        RegistryWriter(first)
    assert command.run("serve", "--path", first).returncode == 1
    assert command.answer("cluster", "leave", "--path", first)["records"] == 200  # 199 modules and the vocabulary
    with RegistryWriter(first) as writer:
        writer.register_module(module("acme.Alone"))
    assert command.run("cluster", "leave", "--path", first).returncode == 1
    assert command.answer("cluster", "join", "--discard", "--cluster", url, "--path", first)["records"] == 1
    assert "acme.Alone" not in shown(first)
    assert violations(first) == violations(second) == []


def test_without_a_cluster_its_options_are_refused(tmp_path: Path) -> None:
    for arguments in (("serve", "--cluster-user", "u"), ("cluster", "seed"), ("serve", "--cluster", "etcd")):
        assert command.run(*arguments, "--path", tmp_path / "r").returncode == 2
    assert not (tmp_path / "r").exists()


def test_a_cluster_that_does_not_answer_is_told_as_its_reader_needs_it(tmp_path: Path) -> None:
    url, folder = f"http://127.0.0.1:{free_ports(1)[0]}", tmp_path / "r"
    refused = command.run("cluster", "seed", "--cluster", url, "--path", folder)
    assert refused.returncode == 1
    assert f"no node of the cluster answers: {url} (" in refused.stderr
    assert refused.stderr.endswith("Look at the cluster's nodes, then run it again.\n")
    arguments = [*command.COMMAND, "serve", "--cluster", url, "--path", str(folder)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "is not followed" in line)
        process.terminate()
    assert line.endswith("Look at the cluster's nodes. The daemon tries again by itself.\n")


def test_what_a_daemon_makes_impossible_is_told_with_its_remedy(tmp_path: Path) -> None:
    with RegistryWriter(tmp_path):
        for words in (("leave",), ("seed", "--cluster", "http://127.0.0.1:1")):
            refused = command.run("cluster", *words, "--path", tmp_path)
            assert refused.returncode == 1
            assert "Nothing was changed. Stop that writer" in refused.stderr
    refused = command.run("cluster", "leave", "--path", tmp_path / "none")
    assert f"there is no registry in {tmp_path / 'none'}." in refused.stderr
    assert not (tmp_path / "none").exists()
