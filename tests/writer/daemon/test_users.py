"""Who may speak to a daemon, and whom a client believes to be one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ProtocolError, StorePermissionError, WriterClient
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.protocol import Done, frame
from tests.support.daemon_process import PATIENT, daemon, daemon_of, module, serve
from tests.support.processes import run, say

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
STRANGER, GROUP = 54321, 54322


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A registry's folder that every user can reach."""
    parent = Path(tempfile.mkdtemp())
    parent.chmod(0o755)
    yield parent / "registry"
    shutil.rmtree(parent)


def register_as(path: str, groups: list[int]) -> None:
    os.setgroups(groups)
    os.setgid(STRANGER)
    os.setuid(STRANGER)
    with WriterClient(path, timeout=PATIENT) as client:
        try:
            say(client.register_module(module("acme.Stranger")))
        except StorePermissionError as error:
            say(error.message)


def status_as(path: str, *options: str) -> None:
    from click.testing import CliRunner

    from dspy_registry.cli.program import main

    CliRunner().invoke(main, ["status", "--path", path])  # loads what a stranger may not be able to read
    os.setgroups([])
    os.setgid(STRANGER)
    os.setuid(STRANGER)
    done = CliRunner().invoke(main, ["status", "--path", path, *options])
    say([done.exit_code, done.stdout])


def serve_group(path: str) -> None:
    serve(path, group=GROUP)


@needs_root
def test_another_user_cannot_open_the_socket(open_folder: Path) -> None:
    with daemon(open_folder):
        assert str(open_folder) in run(__name__, "register_as", open_folder, [GROUP])[0]


@needs_root
def test_another_user_is_refused_even_if_the_socket_is_open_to_all(open_folder: Path) -> None:
    with daemon(open_folder):
        open_folder.chmod(0o755)
        (open_folder / "writer.sock").chmod(0o777)
        assert str(STRANGER) in run(__name__, "register_as", open_folder, [GROUP])[0]


@needs_root
def test_a_group_can_be_admitted(open_folder: Path) -> None:
    with daemon_of(__name__, "serve_group", open_folder):
        assert run(__name__, "register_as", open_folder, [1, GROUP]) == [2]
        assert str(open_folder) in run(__name__, "register_as", open_folder, [1])[0]
        open_folder.chmod(0o755)
        (open_folder / "writer.sock").chmod(0o777)
        assert str(STRANGER) in run(__name__, "register_as", open_folder, [1])[0]


@needs_root
def test_a_status_that_the_daemon_may_not_be_asked_for_shows_the_registry_and_says_why(open_folder: Path) -> None:
    with daemon(open_folder):
        open_folder.chmod(0o755)
        (open_folder / layout.LOCK_FILE).chmod(0o666)
        (open_folder / layout.DATA_FILE).chmod(0o644)
        ((status, shown),) = run(__name__, "status_as", open_folder)
        assert status == 1
        assert "modules              6\n" in shown
        assert "writer.sock" in shown  # why nothing is known of the daemon
        ((status, shown),) = run(__name__, "status_as", open_folder, "--json")
        facts = json.loads(shown)
        assert (status, facts["registry"]["modules"], facts["daemon"]) == (1, 6, None)
        assert facts["unreachable"]["type"] == "StorePermissionError"


def test_a_listener_that_is_no_daemon_is_not_believed(tmp_path: Path) -> None:
    folder = tmp_path / "registry"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "writer.sock"))
        listener.listen()

        def answer() -> None:
            for reply in (b"\0\0\0\1\xc1", b"\xff\xff\xff\xff", frame(Done(1, 1))):
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(reply)
                    connection.recv(65536)

        thread = threading.Thread(target=answer)
        thread.start()
        for _ in range(3):
            with WriterClient(folder, timeout=PATIENT) as client, pytest.raises(ProtocolError):
                client.register_module(module("acme.m"))
        thread.join()
