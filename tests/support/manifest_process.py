"""A daemon that follows a folder of manifests, as a process of its own, and what its readers see."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Registry, UnknownModuleError, WriterClient
from tests.conftest import violations
from tests.support.fork_server import start_code

PATIENT = 60.0
"""Seconds: a limit that no test is about."""

UNNOTICED = """
import dspy_registry.writer.manifests.notices
async def awatch(*folders, **options):
    raise OSError("no watches left")
    yield
dspy_registry.writer.manifests.notices.awatch = awatch
"""
"""A system that has run out of what it takes to notice changes."""

SERVE = """
import logging, sys, warnings
warnings.simplefilter("error")
from pathlib import Path
from dspy_registry.cli.manifests import watching
from dspy_registry.writer.daemon.lifecycle import serve
logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
path, manifests, *packages = sys.argv[1:]
found = {"packages": tuple(packages), "python": None, "timeout": 60.0 if packages else None}
follow = watching(manifests=Path(manifests), discover=bool(packages), **found)
serve(path, extensions=[follow], ready=lambda daemon: print("ready", flush=True))
"""


class Served:
    """A registry with its daemon and the folder that the daemon follows."""

    def __init__(self, path: Path, manifests: Path, log: Path) -> None:
        self.path = path
        self.manifests = manifests
        self._log = log
        self.registry = Registry(path)

    def change(self, call: str, *arguments: Any) -> None:
        """Change the registry as a client does."""
        with WriterClient(self.path) as client:
            getattr(client, call)(*arguments)

    def resolves(self, name: str) -> bool:
        try:
            self.registry.get_module(name)
        except UnknownModuleError:
            return False
        return True

    def section(self, name: str) -> dict[str, Any]:
        with WriterClient(self.path) as client:
            found: dict[str, Any] = client.status().sections[name]
        return found

    def daemon_pid(self) -> int:
        with WriterClient(self.path) as client:
            return client.status().pid

    def status(self) -> dict[str, Any]:
        return self.section("manifests")

    def errors(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.status()["errors"]
        return found

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def until(self, condition: Callable[[], object], seconds: float = PATIENT) -> None:
        """Wait for something that must come."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.status()}\n{list(self.registry)}\n{self.log()}"
            time.sleep(0.01)

    def until_read(self) -> None:
        """Wait until the daemon has taken in the folder as it is now: by a change of it that is seen to come and go."""
        mark = self.manifests / "zz-mark.toml"
        mark.write_text('[[modules]]\nname = "mark.Mark"\n')
        self.until(lambda: "mark.Mark" in self.registry)
        mark.unlink()
        self.until(lambda: "mark.Mark" not in self.registry)

    def duration(self, name: str) -> int:
        """A module's duration; -1 while there is none."""
        found = self.registry.get(name)
        return -1 if found is None else found.estimated_duration


@contextmanager
def serving(path: Path, manifests: Path, *packages: str, before: str = "") -> Iterator[Served]:
    """The daemon must end well when it is asked to, and leave a registry without fault."""
    log = path.parent / "daemon.log"
    with log.open("ab") as stderr:
        process = start_code(before + SERVE, path, manifests, *packages, stderr=stderr.fileno())
    try:
        assert process.stdout.readline() == "ready\n", log.read_text()
        served = Served(path, manifests, log)
        with served.registry:
            served.until(lambda: served.status()["loaded_at"])
            yield served
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENT) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        assert violations(path) == []
    finally:
        process.kill()
        process.wait()
        process.close()


def module(name: str, duration: int) -> str:
    """A manifest of one module, as TOML."""
    return f'[[modules]]\nname = "{name}"\nestimated_duration = {duration}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one sound manifest."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "first.toml").write_text(module("acme.First", 1))
    return folder


@pytest.fixture
def served(tmp_path: Path, folder: Path) -> Iterator[Served]:
    """A daemon that follows the folder."""
    with serving(tmp_path / "registry", folder) as served:
        assert served.duration("acme.First") == 1
        yield served
