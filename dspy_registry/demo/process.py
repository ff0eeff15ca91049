"""The demo's daemon, and the end of every process it starts."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from dspy_registry.registry_store.errors import RegistryError, WriterUnavailableError

SECONDS_TO_START: Final = 30.0
SECONDS_TO_END: Final = 10.0
SECONDS_TO_ANSWER: Final = 60.0
COMMAND: Final = (sys.executable, "-m", "dspy_registry")


class DemoError(RegistryError, RuntimeError):
    """A part of the demo did not do its work."""


class Daemon:
    """`dspy-registry serve --manifests` as a process of its own."""

    def __init__(self, registry: Path, manifests: Path, folder: Path) -> None:
        self._registry = registry
        self._log_path = folder / "daemon.log"
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [*COMMAND, "serve", "--path", str(registry), "--manifests", str(manifests)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                start_new_session=True,  # Ctrl-C in the terminal is for the demo, which ends it itself
            )

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log_path.read_text(errors="replace").strip()

    def wait_until_ready(self) -> None:
        """Return once it answers. Raises DemoError with what it said when it does not."""
        from dspy_registry.writer.client.client import WriterClient

        deadline = time.monotonic() + SECONDS_TO_START
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                with WriterClient(self._registry) as client:
                    client.status()
                    return
            except WriterUnavailableError:
                time.sleep(0.02)
        raise DemoError(f"the daemon did not start: {self.log or 'it said nothing'}")

    def close(self) -> None:
        """Let it end in its own time, or else kill it."""
        self.process.terminate()
        end(self.process, SECONDS_TO_END)


def ask(registry: Path, folder: Path, *arguments: str) -> Any:
    """What `dspy-registry ... --json` answers. Raises DemoError."""
    return json.loads(told(registry, folder, *arguments, "--json"))


def told(registry: Path, folder: Path, *arguments: str) -> str:
    """What `dspy-registry ...` prints. Raises DemoError."""
    return _run(registry, folder, arguments, capture_output=True)


def show(registry: Path, folder: Path, *arguments: str) -> None:
    """Let `dspy-registry ...` print on the demo's own stdout, as fits it. Raises DemoError."""
    _run(registry, folder, arguments, stderr=subprocess.PIPE)


def _run(registry: Path, folder: Path, arguments: tuple[str, ...], **streams: Any) -> str:
    command = [*COMMAND, *arguments, "--path", str(registry)]
    done = subprocess.run(command, cwd=folder, text=True, timeout=SECONDS_TO_ANSWER, **streams)
    if done.returncode:
        raise DemoError(f"dspy-registry {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout or ""


def end(process: subprocess.Popen[Any], patience: float) -> int:
    """Wait so many seconds for a process that was asked to end, then kill it; its exit status."""
    try:
        return process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
