"""The writer daemon's life: opening, signals, its files and disk, and what it leaves behind."""

from __future__ import annotations

import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dspy_registry import (
    InvalidArgumentError,
    Registry,
    RegistryError,
    RegistryWriter,
    StoreError,
    WriterClient,
    WriterLockedError,
    WriterUnavailableError,
)
from dspy_registry.registry_store.protocol import Done
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.support.daemon_process import daemon, daemon_of, module, registration
from tests.support.processes import say


def test_it_creates_the_registry_and_registers(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client, Registry(registry_folder) as registry:
        revision = client.register_module(module("acme.Summarise"))
        assert registry.revision == revision == client.revision
        assert registry.get_module("acme.Summarise") == module("acme.Summarise")
        assert registry.find_by_capability("summarisation") == ("acme.Summarise",)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_well(registry_folder: Path, number: signal.Signals) -> None:
    with daemon(registry_folder) as served:
        assert served.end(number) == 0
        assert not (registry_folder / "writer.sock").exists()
    with RegistryWriter(registry_folder) as writer:  # the writer lock is free
        assert writer.revision == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_finished(registry_folder: Path, number: signal.Signals) -> None:
    slow = {"DSPY_REGISTRY_FAILPOINTS": "before_commit=sleep:100"}
    with daemon(registry_folder, **slow) as served, served.peer() as peer, served.client() as client:
        peer.send(*(registration(n, module(f"acme.m{n}")) for n in range(1, 33)))
        while (status := client.status()).requests + status.queued < 32:
            pass
        assert served.end(number) == 0
        answers = [peer.receive() for _ in range(32)]
        assert all(isinstance(answer, Done) for answer in answers)
        assert peer.receive() is None
    with Registry(registry_folder) as registry:
        assert all(f"acme.m{n}" in registry for n in range(1, 33))


def test_a_second_writer_is_refused_by_pid(registry_folder: Path) -> None:
    with daemon(registry_folder) as served:
        for second in (RegistryWriter, lambda path: Daemon(path).run()):
            with pytest.raises(WriterLockedError, match=str(served.pid)) as refused:
                second(registry_folder)
            assert refused.value.pid == served.pid
        with served.client() as client:  # and the first has not noticed
            client.register_module(module("acme.Summarise"))


def test_only_this_user_may_open_the_socket(registry_folder: Path) -> None:
    before = os.umask(0)
    try:
        with daemon(registry_folder):
            assert stat.S_IMODE((registry_folder / "writer.sock").stat().st_mode) == 0o600
    finally:
        os.umask(before)


def test_the_socket_of_a_killed_daemon_is_replaced(registry_folder: Path) -> None:
    with daemon(registry_folder) as served:
        served.kill()
    assert (registry_folder / "writer.sock").is_socket()
    with daemon(registry_folder) as served, served.client() as client:
        assert client.status().pid == served.pid


def test_a_file_in_the_way_is_left_alone(registry_folder: Path) -> None:
    registry_folder.mkdir()
    in_the_way = registry_folder / "writer.sock"
    in_the_way.write_text("precious")
    with pytest.raises(StoreError, match=str(registry_folder / "writer.sock")):
        Daemon(registry_folder).run()
    assert in_the_way.read_text() == "precious"


def test_a_link_in_the_way_is_left_alone(registry_folder: Path, tmp_path: Path) -> None:
    registry_folder.mkdir()
    target = tmp_path / "elsewhere.sock"
    with socket.socket(socket.AF_UNIX) as elsewhere:
        elsewhere.bind(str(target))
    (registry_folder / "writer.sock").symlink_to(target)
    with pytest.raises(StoreError, match=str(registry_folder / "writer.sock")):
        Daemon(registry_folder).run()
    assert target.is_socket()


def test_a_socket_that_answers_is_left_alone(registry_folder: Path) -> None:
    registry_folder.mkdir()
    path = registry_folder / "writer.sock"
    with socket.socket(socket.AF_UNIX) as foreign, socket.socket(socket.AF_UNIX) as visitor:
        foreign.bind(str(path))
        foreign.listen()
        with pytest.raises(StoreError, match=str(path)):
            Daemon(registry_folder).run()
        visitor.connect(str(path))


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    for kind in (Daemon, WriterClient):
        with pytest.raises(InvalidArgumentError, match="107"):
            kind(folder)
    assert not folder.exists()


def test_a_group_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="no-such-group"):
        Daemon(tmp_path, group="no-such-group")
    with pytest.raises(InvalidArgumentError, match=r"no group 'no-such' and no group 'nor-this'.*groupadd"):
        Daemon(tmp_path, group="no-such", report_group="nor-this")


def test_hooks_need_a_daemon_that_runs(tmp_path: Path) -> None:
    stopped = Daemon(tmp_path / "registry")
    stopped.stop()  # does nothing
    assert "not running" in repr(stopped)
    for hook in ("store", "queue", "revision"):
        with pytest.raises(RegistryError):
            getattr(stopped, hook)


def test_it_prints_nothing(registry_folder: Path) -> None:
    code = """import sys
from dspy_registry.writer.daemon.lifecycle import serve
serve(sys.argv[1], ready=lambda daemon: daemon.stop())
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, registry_folder], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


# The files


def test_a_socket_that_somebody_removes_comes_back(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client, served.client() as other:
        client.register_module(module("acme.m"))
        (registry_folder / "writer.sock").unlink()
        while not (registry_folder / "writer.sock").exists():
            client.status()
        other.register_module(module("acme.n"))
        assert served.end() == 0
    assert not (registry_folder / "writer.sock").exists()


@pytest.mark.parametrize("name", ["data.mdb", "lock.mdb", "revision", "writer.lock"])
def test_a_daemon_whose_files_are_taken_away_stops(tmp_path: Path, name: str) -> None:
    with daemon(tmp_path / "registry") as served:
        (tmp_path / "registry" / name).unlink()
        assert served.process.wait() == 1


# The disk


def test_a_write_that_does_not_fit_is_refused_and_the_daemon_goes_on(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client, Registry(registry_folder) as registry:
        client.register_module(module("acme.Small"))
        size = (registry_folder / "data.mdb").stat().st_size
        unlimited = resource.prlimit(served.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (size, unlimited[1]))
        large = module("acme.Large", metadata={"text": "x" * 900_000})
        with pytest.raises(StoreError):
            client.register_module(large)
        assert "acme.Large" not in registry
        resource.prlimit(served.pid, resource.RLIMIT_FSIZE, unlimited)
        assert client.register_module(large) == registry.revision
        assert registry.get_module("acme.Large") == large
        assert served.end() == 0


_FDATASYNC = {"x86_64": 75, "aarch64": 83}.get(os.uname().machine)


def serve_on_a_disk_that_fails(path: str) -> None:
    """Every sync of this process fails with EIO, by a filter on its system calls."""
    import errno

    from tests.support.system_calls import forbid

    def refuse_sync(_: Daemon) -> None:
        assert _FDATASYNC is not None
        forbid(_FDATASYNC, errno.EIO)
        say("ready")

    try:
        Daemon(path).run(refuse_sync)
    except StoreError as error:
        say([str(Path(path)) in error.message, error.remedy != ""])
        sys.exit(3)


@pytest.mark.skipif(_FDATASYNC is None, reason="the number of fdatasync is known for x86-64 and arm64")
def test_a_disk_that_fails_ends_the_daemon(seeded_registry: Path) -> None:
    with daemon_of(__name__, "serve_on_a_disk_that_fails", seeded_registry) as served:
        with served.peer() as peer:
            answers = peer.ask(*(registration(n, module(f"acme.m{n}")) for n in range(1, 9)))
            assert {(answer.kind, answer.id) for answer in answers} == {("StoreError", n) for n in range(1, 9)}
        assert served.process.hear() == [True, True]
        assert served.process.wait() == 3
    with Registry(seeded_registry) as registry:
        assert not any(name.startswith("acme.") for name in registry)
    with daemon(seeded_registry) as served, served.client() as client:
        client.register_module(module("acme.m1"))
    with WriterClient(seeded_registry) as client, pytest.raises(WriterUnavailableError):
        client.revision  # noqa: B018
