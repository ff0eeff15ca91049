"""Programs in a cluster: published on any host, loaded by name on every host, collected when nothing names them."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Programs, Registry, RegistryError, RegistryWriter, errors
from dspy_registry.integrations.dspy import publish as send_program
from dspy_registry.registry_store.cluster_rows import Position, held_programs
from dspy_registry.registry_store.codec import encode
from dspy_registry.registry_store.program_document import digest_of
from dspy_registry.registry_store.program_rows import cut, load_program, stored_digests
from dspy_registry.registry_store.protocol import Part, Publish, Versioned
from dspy_registry.registry_store.sharing import attach, detach
from dspy_registry.writer.cluster.keys import Keys
from dspy_registry.writer.cluster.membership import stage_join
from dspy_registry.writer.cluster.program_mirror import hold
from dspy_registry.writer.cluster.program_store import PIECE_BYTES, ProgramHead, head_codec
from dspy_registry.writer.held_programs import release_held
from dspy_registry.writer.rollback import read_versions, roll_back
from tests.conftest import violations
from tests.support import command
from tests.support.compiled_programs import ALLOW, NAME, Qa, compiled, plain_document, publication
from tests.support.daemon_process import Served, module, registration
from tests.support.etcd import EtcdCluster, host, in_step, needs_etcd, patient, section, shown

_MIB = 1024 * 1024


def stored(folder: Path) -> dict[bytes, bytes]:
    """Every document of a host, by digest."""
    environment = attach(folder)
    try:
        with environment.reading() as txn:
            digests = list(stored_digests(txn, environment.dbs))
            return {digest: load_program(txn, environment.dbs, digest) for digest in digests}
    finally:
        detach(environment)


def program_of(folder: Path, name: str = NAME) -> bytes:
    with Registry(folder) as registry:
        return registry.describe(name).provenance.program


def heads(cluster: EtcdCluster) -> set[bytes]:
    return {bytes.fromhex(key.rpartition(b"/")[2].decode()) for key in cluster.keys(b"/dspy-registry/q/")}


def pieces(cluster: EtcdCluster) -> set[bytes]:
    """The digests of which the cluster has pieces."""
    return {bytes.fromhex(key.split(b"/")[-2].decode()) for key in cluster.keys(b"/dspy-registry/p/")}


def publish(client: Any, document: bytes, **given: Any) -> int:
    version: int = client.publish_program(publication(document, **given), document).version
    return version


@needs_etcd
def test_a_program_that_is_published_on_one_host_is_loaded_by_name_on_every_host(
    tmp_path: Path, cluster: EtcdCluster
) -> None:
    large, small = plain_document("large", 3 * _MIB), plain_document("small")
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        at_a.register_module(module(NAME))
        version = publish(at_b, large, label="candidate")
        assert version == 2
        in_step(b, a)
        assert publish(at_a, large, label="candidate") == 2
        assert publish(at_a, large, name="acme.Twin", label="live") == 1
        assert publish(at_a, small) == 4
        in_step(a, b)
        for served in (a, b):
            assert program_of(served.path, f"{NAME}@candidate") == digest_of(large)
            assert program_of(served.path, f"{NAME}@4") == digest_of(small)
            assert program_of(served.path) == b""
            assert stored(served.path) == {digest_of(large): large, digest_of(small): small}
            assert violations(served.path) == []
        assert len(cluster.keys(b"/dspy-registry/p/")) == -(-len(large) // PIECE_BYTES) + 1
        with host(tmp_path / "late", cluster) as late:
            in_step(a, late)
            assert program_of(late.path, f"{NAME}@candidate") == digest_of(large)
            assert violations(late.path) == []
        assert shown(a.path) == shown(b.path)


@pytest.mark.full
@needs_etcd
def test_a_program_goes_when_no_version_of_the_cluster_names_it(tmp_path: Path, cluster: EtcdCluster) -> None:
    first, second = plain_document("first", _MIB), plain_document("second", _MIB)
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        publish(at_a, first, is_in_force=True, label="live")
        publish(at_a, second, is_in_force=True)
        in_step(a, b)
        at_b.set_label(NAME, "live", 2)
        patient(lambda: heads(cluster) == pieces(cluster) == {digest_of(second)})
        in_step(b, a)
        assert set(stored(a.path)) == set(stored(b.path)) == {digest_of(first), digest_of(second)}  # of the history
        roll_back(at_a, read_versions(a.path, NAME), 1)
        in_step(a, b)
        assert program_of(b.path) == digest_of(first)
        assert heads(cluster) == {digest_of(first), digest_of(second)}
        at_a.register_module(module(NAME, estimated_duration=1))
        assert program_of(a.path) == digest_of(first)
        at_b.unregister_module(NAME)
        patient(lambda: heads(cluster) == pieces(cluster) == set())
        in_step(b, a)
        for number in range(20):
            at_a.register_module(module(NAME, estimated_duration=number + 2))
        in_step(a, b)
        assert stored(a.path) == stored(b.path) == {}
        assert violations(a.path) == violations(b.path) == []


@pytest.mark.full
@needs_etcd
def test_what_an_interrupted_upload_left_is_cleared(tmp_path: Path, cluster: EtcdCluster) -> None:
    """Of this host, and of one that is gone. What a host that is alive puts just now stays."""

    def leave(host_id: str, document: bytes) -> bytes:
        keys = Keys("/dspy-registry/", host_id)
        cluster.put(keys.program_pieces + digest_of(document).hex().encode() + b"/000000", document)
        cluster.put(keys.program_head(digest_of(document)), head_codec.dump(ProgramHead(len(document), 2, host_id)))
        return digest_of(document)

    with host(tmp_path / "b", cluster) as b:
        with host(tmp_path / "a", cluster) as a, a.client() as at_a:
            at_a.register_module(module(NAME))
            own = section(a)["host"]
        for host_id in (own, "gone"):
            leave(host_id, plain_document(host_id))
        theirs = leave(section(b)["host"], plain_document("theirs"))
        with host(tmp_path / "a", cluster) as a, a.client() as at_a:
            patient(lambda: section(b)["host"] in section(a)["hosts"])
            at_a.register_module(module(NAME, pool_type="neural"))
            patient(lambda: heads(cluster) == pieces(cluster) == {theirs})
            assert publish(at_a, plain_document(own), label="live") == 3
            assert program_of(a.path, f"{NAME}@live") == digest_of(plain_document(own))


@pytest.mark.full
@needs_etcd
def test_a_daemon_that_is_killed_while_it_publishes_leaves_all_or_nothing(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "b", cluster) as b:
        for number in range(2):
            document = plain_document(f"killed{number}", 4 * _MIB)

            def ask(served: Served, document: bytes = document) -> None:
                with suppress(RegistryError), served.client(timeout=5) as client:
                    publish(client, document, label="live")

            with host(tmp_path / "a", cluster) as a:
                asked = threading.Thread(target=ask, args=(a,))
                asked.start()
                patient(lambda document=document: digest_of(document) in pieces(cluster))
                threading.Event().wait(number * 0.03)
                a.kill()
                asked.join()
            with host(tmp_path / "a", cluster) as a, a.client() as at_a:
                at_a.register_module(module("acme.Other", estimated_duration=number))
                in_step(a, b)
                named = programs_of_versions(a.path)
                patient(lambda named=named: heads(cluster) == pieces(cluster) == named)
                assert violations(a.path) == violations(b.path) == []
                assert stored(b.path).keys() >= named


def programs_of_versions(folder: Path) -> set[bytes]:
    """The programs that the kept versions of the module name, older ones too."""
    with Registry(folder) as registry:
        kept = registry.history(NAME) if NAME in registry else ()
        return {old.provenance.program for old in kept} - {b""}


@pytest.mark.full
@needs_etcd
def test_a_program_that_is_not_what_was_published_sets_its_version_aside(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        at_a.register_module(module(NAME))
        publish(at_a, plain_document("good", _MIB), label="live")
        with host(tmp_path / "b", cluster) as b:
            in_step(a, b)
        bad = plain_document("bad", _MIB)
        publish(at_a, bad, is_in_force=True)
        place = f"/dspy-registry/p/{digest_of(bad).hex()}/000001".encode()
        cluster.put(place, b"other bytes")
        cluster.compact()
        with host(tmp_path / "b", cluster) as b, b.client() as at_b:
            patient(lambda: set(section(b)["set_aside"]) == {f"modules/{NAME}"})
            assert "program" in section(b)["set_aside"][f"modules/{NAME}"]
            assert program_of(b.path, f"{NAME}@live") == digest_of(plain_document("good", _MIB))
            assert program_of(b.path) == b""
            with pytest.raises(errors.ClusterMembershipError):
                at_b.register_module(module(NAME, pool_type="neural"))
            assert violations(b.path) == []
            at_a.register_module(module("acme.Other"))
            in_step(a, b)
            publish(at_a, plain_document("mended", _MIB), is_in_force=True)
            in_step(a, b)
            assert section(b)["errors"] == 0
            assert program_of(b.path) == digest_of(plain_document("mended", _MIB))


@pytest.mark.full
@needs_etcd
def test_a_head_of_another_release_is_never_overwritten(tmp_path: Path, cluster: EtcdCluster) -> None:
    document = plain_document("theirs")
    head = f"/dspy-registry/q/{digest_of(document).hex()}".encode()
    cluster.put(head, b"of another release")
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        with pytest.raises(errors.CorruptRecordError):
            publish(at_a, document)
        publish(at_a, plain_document("ours"), is_in_force=True)
        publish(at_a, plain_document("later"), is_in_force=True)
        patient(lambda: digest_of(plain_document("ours")) not in heads(cluster))
        assert cluster.keys(head) == {head: b"of another release"}


@needs_etcd
@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_host_takes_over_many_programs_in_bounded_memory(tmp_path: Path, cluster: EtcdCluster) -> None:
    """One of them is in memory at a time, however many a host lacks."""
    count, size = 10, 6 * _MIB
    with host(tmp_path / "a", cluster) as a, a.client() as at_a:
        for number in range(count):
            publish(at_a, plain_document(str(number), size), name=f"acme.P{number}")
        with host(tmp_path / "b", cluster) as b:
            before = b.memory
            in_step(a, b)
            assert len(stored(b.path)) == count
            assert violations(b.path) == []
            status = Path(f"/proc/{b.pid}/status").read_text(encoding="ascii")
            peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
            mapped = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssFile"))
            assert peak - before - mapped < count * size


def test_a_program_is_held_until_versions_name_it_or_nothing_does(registry_folder: Path) -> None:
    """A kill may come behind any of these commits: each leaves a registry that `check` is content with."""
    document = plain_document("held")
    with RegistryWriter(registry_folder) as writer:
        commit = writer.store.committer.commit
        commit(lambda draft: stage_join(draft, Position("cluster", "host"), ()))
        commit(lambda draft: hold(draft, digest_of(document), [document]))
        assert violations(registry_folder) == []
        assert stored(registry_folder) == {digest_of(document): document}
        commit(release_held)
        assert stored(registry_folder) == {}
        environment = writer.store.environment
        with environment.reading() as txn:
            assert held_programs(txn, environment.dbs) == set()


@pytest.mark.full
@needs_etcd
def test_labels_and_programs_are_seeded(tmp_path: Path, cluster: EtcdCluster) -> None:
    first, url = tmp_path / "first", cluster.urls[0]
    document = plain_document("seeded", 3 * _MIB)
    with RegistryWriter(first) as writer:
        for number in range(1, 25):
            writer.register_module(module(NAME, estimated_duration=number))
            if number == 3:
                writer.set_label(NAME, "old", {2: 30, 3: 70})
        publish(writer, document, label="live")
        writer.set_label("dspy.Predict", "mine", 1)
    assert "dspy.Predict@mine" in command.run("cluster", "join", "--cluster", url, "--path", first).stderr
    refused = command.run("cluster", "seed", "--cluster", url, "--path", first)
    assert refused.returncode == 1
    assert "manifest" in refused.stderr
    with RegistryWriter(first) as writer:
        writer.remove_label("dspy.Predict", "mine")
    command.answer("cluster", "seed", "--cluster", url, "--path", first)
    command.answer("cluster", "seed", "--cluster", url, "--path", first)
    with host(first, cluster) as a, host(tmp_path / "second", cluster) as b, b.client() as at_b:
        patient(lambda: shown(b.path))
        in_step(b, a)
        with Registry(a.path) as here, Registry(b.path) as there:
            for label in ("old", "live"):
                assert here.labels(NAME)[label].runs == there.labels(NAME)[label].runs
            assert there.get_module(f"{NAME}@2").estimated_duration == 2
            assert there.describe(f"{NAME}@live").provenance.program == digest_of(document)
        assert stored(b.path) == {digest_of(document): document}
        assert violations(a.path) == violations(b.path) == []
        at_b.set_label(NAME, "old", 3, expected={2: 30, 3: 70})
        in_step(b, a)
        with a.client() as at_a:
            at_a.set_label(NAME, "before", 20)  # the history of the first host is the cluster's
        in_step(a, b)
        with Registry(b.path) as there:
            assert there.get_module(f"{NAME}@before").estimated_duration == 20
        assert violations(a.path) == violations(b.path) == []
    with RegistryWriter(tmp_path / "third") as writer:
        writer.register_module(module(NAME, estimated_duration=1))
        writer.set_label(NAME, "mine", 1)
    assert f"{NAME}@mine" in command.run("cluster", "join", "--cluster", url, "--path", tmp_path / "third").stderr
    command.answer("cluster", "join", "--discard", "--cluster", url, "--path", tmp_path / "third")
    with host(tmp_path / "third", cluster) as c, Registry(tmp_path / "second") as there:
        patient(lambda: shown(c.path) == shown(tmp_path / "second"))
        with Registry(c.path) as here:
            assert {k: v.runs for k, v in here.labels(NAME).items()} == {
                k: v.runs for k, v in there.labels(NAME).items()
            }
        assert violations(c.path) == []


@pytest.mark.full
@needs_etcd
def test_a_compiled_program_moves_with_its_label_on_every_host(tmp_path: Path, cluster: EtcdCluster) -> None:
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b, a.client() as at_a, b.client() as at_b:
        first = send_program(compiled(Qa(), "first"), NAME, client=at_a, label="live").version
        second = send_program(compiled(Qa(), "second"), NAME, client=at_b, label="candidate").version
        in_step(b, a)
        with Registry(a.path) as registry:
            programs = Programs(registry, ALLOW)
            assert programs[f"{NAME}@live"].qa.signature.instructions == "first"
            assert programs[f"{NAME}@candidate"].qa.signature.instructions == "second"
        at_a.set_label(NAME, "live", second, expected=first)
        in_step(a, b)
        with Registry(b.path) as registry:
            assert Programs(registry, ALLOW)[f"{NAME}@live"].qa.signature.instructions == "second"


@pytest.mark.full
@needs_etcd
def test_hosts_publish_and_let_go_of_the_same_program_at_once(tmp_path: Path, cluster: EtcdCluster) -> None:
    document = plain_document("shared", 2 * _MIB)
    with host(tmp_path / "a", cluster) as a, host(tmp_path / "b", cluster) as b:

        def run(served: Served, name: str, failures: list[str]) -> None:
            try:
                with served.client() as client:
                    for _ in range(5):
                        publish(client, document, name=name, is_in_force=True)
                        if program_of(served.path, name) != digest_of(document):
                            failures.append(name)
                        client.unregister_module(name)
            except RegistryError as error:
                failures.append(repr(error))

        failures: list[str] = []
        threads = [threading.Thread(target=run, args=(one, f"acme.{n}", failures)) for n, one in enumerate((a, b))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        in_step(a, b)
        in_step(b, a)
        with a.client() as at_a:
            publish(at_a, plain_document("other"), name="acme.Last", is_in_force=True)
            at_a.unregister_module("acme.Last")
        patient(lambda: heads(cluster) == pieces(cluster) == set())
        assert violations(a.path) == violations(b.path) == []


@pytest.mark.full
@needs_etcd
def test_a_publication_that_comes_again_makes_one_version(tmp_path: Path, cluster: EtcdCluster) -> None:
    document = plain_document("again", _MIB)
    request = Publish(2, 2, len(cut(document)), encode(publication(document, label="live")))
    parts = [Part([piece]) for piece in cut(document)]
    with host(tmp_path / "a", cluster) as a, a.peer(b"c" * 16) as peer:
        peer.ask(registration(1, module(NAME)))
        peer.send(*parts, request)
        first = peer.receive()
        assert isinstance(first, Versioned)
        a.kill()
    with host(tmp_path / "a", cluster) as a, a.peer(b"c" * 16) as peer:
        peer.send(*parts, request)
        again = peer.receive()
        assert isinstance(again, Versioned)
        assert (again.version, first.version) == (2, 2)
        assert shown(a.path)[NAME][1] == 3
