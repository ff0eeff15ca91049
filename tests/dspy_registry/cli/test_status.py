"""`status` with real daemons: each state that an operator has to mend makes it exit with 1. It never hangs itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import RegistryWriter
from dspy_registry.cli.status import _is_stopped
from dspy_registry.cli.store_facts import reader_rows
from tests.support.command import COMMAND, run
from tests.support.daemon_process import PATIENT, daemon
from tests.support.raw_access import flipped, opened


def told(folder: Path, *options: str) -> dict[str, Any]:
    """The facts; the exit status must be that of whether there are problems."""
    done = run("status", "--json", "--path", folder, *options)
    found: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (1 if found["problems"] else 0)
    return found


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def problems_of(folder: Path) -> list[str]:
    """Of a daemon that may still be starting."""
    done = run("status", "--json", "--path", folder)
    found: list[str] = json.loads(done.stdout)["problems"] if done.stdout else []
    return found


@contextmanager
def serving(folder: Path, *options: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [*COMMAND, "serve", "--path", str(folder), *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENT)


def test_a_daemon_that_is_away(seeded_registry: Path) -> None:
    assert told(seeded_registry)["problems"] == ["daemon: none answers"]
    shown = run("status", "--path", seeded_registry)
    assert "none answers. Start one with `dspy-registry serve`." in shown.stdout
    assert "0 processes, 0 slots" in shown.stdout
    assert shown.returncode == 1


def test_one_of_a_thing_is_no_several() -> None:
    one = {"pid": 7, "command": "python", "slots": 1, "behind": 1, "since": None}
    assert [text for _, text in reader_rows([one])] == ["1 process, 1 slot", "process 7 (python): 1 transaction behind"]
    assert [text for _, text in reader_rows([{**one, "behind": 0}] * 2)] == ["2 processes, 2 slots"]


def test_a_daemon_that_was_killed(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served:
        assert told(seeded_registry)["problems"] == []
        served.kill()
        assert told(seeded_registry)["unreachable"]["type"] == "WriterUnavailableError"


def test_a_daemon_that_is_stopped_is_told_without_asking_it(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served:
        with served.stopped():
            until(lambda: _is_stopped(served.pid))
            found = told(seeded_registry)
            assert found["unreachable"] == {
                "type": "WriterTimeoutError",
                "message": f"process {served.pid}, the writer, is stopped by a signal.",
                "remedy": f"Let it go on with `kill -CONT {served.pid}`, or end it.",
            }
            assert found["registry"]["modules"] == 6  # what is known without it
            assert told(seeded_registry, "--wait", "0.3")["problems"]
        assert told(seeded_registry)["problems"] == []


def test_a_wait_ends_once_the_daemon_goes_on(seeded_registry: Path) -> None:
    with daemon(seeded_registry) as served, served.stopped():
        until(lambda: _is_stopped(served.pid))
        go_on = threading.Timer(0.3, os.kill, (served.pid, signal.SIGCONT))
        go_on.start()
        assert told(seeded_registry, "--wait", str(PATIENT))["problems"] == []
        go_on.join()


def test_a_wait_ends_once_a_daemon_is_there(registry_folder: Path) -> None:
    with serving(registry_folder):  # neither the registry nor its daemon is there yet
        assert told(registry_folder, "--wait", str(PATIENT))["problems"] == []


def test_a_wait_for_a_registry_that_never_comes(tmp_path: Path) -> None:
    done = run("status", "--json", "--path", tmp_path / "none", "--wait", "0.3", DSPY_REGISTRY_WAIT="0")
    assert done.returncode == 1
    assert json.loads(done.stderr)["error"]["type"] == "RegistryNotFoundError"


def test_a_check_and_a_backup_that_failed(seeded_registry: Path, tmp_path: Path) -> None:
    with opened(seeded_registry) as (get, put):
        put("modules", b"dspy.Predict", flipped(get("modules", b"dspy.Predict")))
    (tmp_path / "file").touch()
    often = ("--check-every", "1s", "--backup-every", "1s", "--backup-dir", tmp_path / "file" / "backups")
    with serving(seeded_registry, *often):
        until(lambda: {part.partition(":")[0] for part in told(seeded_registry)["problems"]} == {"check", "backups"})


def test_a_manifest_in_error(registry_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("what?")
    with serving(registry_folder, "--manifests", tmp_path):
        until(lambda: any(each.startswith("manifests: 1 error: a.toml:1: ") for each in problems_of(registry_folder)))
        (tmp_path / "a.toml").unlink()
        assert told(registry_folder, "--wait", str(PATIENT))["problems"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_folder_without_room_for_a_commit(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "none", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip("this container may not mount")
    try:
        folder = tmp_path / "registry"
        RegistryWriter(folder).close()
        with daemon(folder):
            (problem,) = told(folder)["problems"]
            assert problem.startswith("disk: ")
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
