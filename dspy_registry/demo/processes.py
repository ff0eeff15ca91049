"""What the stages of the demo share, and its processes: how each is started, asked and ended."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from dspy_registry.demo.reader_process import Reads, Task
from dspy_registry.registry_store.errors import RegistryError, WriterUnavailableError
from dspy_registry.writer.client.client import WriterClient
from dspy_registry.writer.core_modules import CORE_MODULES

SECONDS_TO_START: Final = 30.0
SECONDS_TO_END: Final = 10.0
SECONDS_TO_ANSWER: Final = 60.0
SECONDS_WITHOUT_CHANGE: Final = 30
MAX_SAMPLES: Final = 200_000
_COMMAND: Final = "dspy_registry"


class DemoError(RegistryError, RuntimeError):
    """A part of the demo did not do its work."""


def _start(arguments: list[str], folder: Path, stderr_path: Path, **streams: Any) -> subprocess.Popen[bytes]:
    """Start `python -m ...` in its own session: Ctrl-C in the terminal is for the demo, which ends its processes."""
    with stderr_path.open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", *arguments], cwd=folder, stderr=stderr, start_new_session=True, **streams
        )


def _end(process: subprocess.Popen[bytes], seconds: float = SECONDS_TO_END) -> int:
    """Wait for a process that was asked to end, kill it after `seconds`, and return its exit status."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


# Commands that run to their end


def ask(registry: Path, folder: Path, *arguments: str) -> Any:
    """What `dspy-registry ... --json` answers. Raises DemoError."""
    return json.loads(output(registry, folder, *arguments, "--json"))


def output(registry: Path, folder: Path, *arguments: str) -> str:
    """What `dspy-registry ...` prints. Raises DemoError."""
    return _run(registry, folder, arguments, capture_output=True)


def show(registry: Path, folder: Path, *arguments: str) -> None:
    """Let `dspy-registry ...` print on the demo's own stdout. Raises DemoError."""
    _run(registry, folder, arguments, stderr=subprocess.PIPE)


def problems(registry: Path, folder: Path) -> list[str]:
    """What `dspy-registry status` prints while it has a problem to tell, and so exits with 1. Raises DemoError."""
    return _run(registry, folder, ("status",), expected=1, capture_output=True).splitlines()


def _run(registry: Path, folder: Path, arguments: tuple[str, ...], expected: int = 0, **streams: Any) -> str:
    command = [sys.executable, "-m", _COMMAND, *arguments, "--path", str(registry)]
    done = subprocess.run(command, cwd=folder, text=True, timeout=SECONDS_TO_ANSWER, **streams)
    if done.returncode != expected:
        raise DemoError(f"dspy-registry {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout or ""


# Processes that stay


class Daemon:
    """A `dspy-registry serve --manifests` process."""

    def __init__(self, registry: Path, manifests: Path, folder: Path) -> None:
        self._registry = registry
        self._log_path = folder / "daemon.log"
        arguments = [_COMMAND, "serve", "--path", str(registry), "--manifests", str(manifests)]
        self._process = _start(arguments, folder, self._log_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Return once it answers. Raises DemoError with its log when it does not."""
        deadline = time.monotonic() + SECONDS_TO_START
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with WriterClient(self._registry) as client:
                    client.status()
                    return
            except WriterUnavailableError:
                time.sleep(0.02)
        log = self._log_path.read_text(errors="replace").strip()
        raise DemoError(f"the daemon did not start: {log or 'its log is empty'}")

    def close(self) -> None:
        """Ask it to end, and kill it after SECONDS_TO_END."""
        self._process.terminate()
        _end(self._process)


class Witness:
    """A `dspy-registry watch` process, so that the demo knows when other processes see a change.

    It ends after SECONDS_WITHOUT_CHANGE without a change.
    """

    def __init__(self, registry: Path, folder: Path, revision: int) -> None:
        self._stderr_path = folder / "watch.err"
        # It starts before the newest revision. Its first line is of that revision, and shows that it is watching.
        options = ["--json", "--since", str(revision - 1), "--timeout", str(SECONDS_WITHOUT_CHANGE)]
        arguments = [_COMMAND, "watch", *options, "--path", str(registry)]
        self._process = _start(arguments, folder, self._stderr_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)

    def wait_until_ready(self) -> None:
        """Return once it is watching. Raises DemoError."""
        self._next_names()

    def wait_for(self, name: str) -> None:
        """Return once it has seen a change of this module. Raises DemoError."""
        while name not in self._next_names():
            pass

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        _end(self._process)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def _next_names(self) -> set[str]:
        """The modules of the next change."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _end(self._process)
            stderr = self._stderr_path.read_text(errors="replace").strip()
            raise DemoError(f"a process that watched for changes saw none: {stderr or 'it waited too long'}")
        return {module["name"] for module in json.loads(line)["modules"]}


class Reader:
    """A process that reads as workers do. `latest` is its newest report, `total` all of them together.

    In a long run `total` keeps every second sample, then every fourth and so on, at most MAX_SAMPLES.
    """

    def __init__(self, number: int, task: Task, folder: Path) -> None:
        self.number = number
        self.latest = Reads()
        self.total = Reads()
        self._keep_every = 1
        self._stderr_path = folder / f"reader-{number}.err"
        arguments = ["dspy_registry.demo.reader_process"]
        self._process = _start(arguments, folder, self._stderr_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._send(msgspec.json.encode(task) + b"\n")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def stop(self) -> None:
        """Ask the process to end; `close` waits for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended already, and `_listen` says so
            self._process.stdin.close()

    def close(self) -> None:
        """End the process, by force if needed, and take its last reports."""
        self.stop()
        _end(self._process)
        self._listener.join(SECONDS_TO_END)

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._take(msgspec.json.decode(line, type=Reads))
        status = self._process.wait()
        if status and self.total.error is None:
            stderr = self._stderr_path.read_text(errors="replace").strip().splitlines()
            self.total.error = f"ended with status {status}: {stderr[-1] if stderr else 'it printed no error'}"

    def _take(self, report: Reads) -> None:
        total = self.total
        total.reads += report.reads
        total.seconds += report.seconds
        total.stale += report.stale
        total.revision = max(total.revision, report.revision)
        total.samples += report.samples[:: self._keep_every]
        if len(total.samples) > MAX_SAMPLES:
            del total.samples[::2]
            self._keep_every *= 2
        total.error = total.error or report.error
        if report.error is None:
            self.latest = report


# What the stages share


class Demo:
    """What the stages share. `facts` is what --json prints; with any `failures` the demo exits with 1."""

    def __init__(self, stack: ExitStack, folder: Path, seconds: float, readers: int, *, quiet: bool) -> None:
        self.stack = stack
        self.folder = folder
        self.registry = folder / "registry"
        self.manifests = folder / "manifests"
        self.seconds = seconds
        self.readers = readers
        self.quiet = quiet
        self.steady = [info.name for info in CORE_MODULES]
        self.facts: dict[str, Any] = {}
        self.failures: list[str] = []
        self.client: WriterClient

    def say(self, text: str = "") -> None:
        """Print a line of the story, unless quiet."""
        if not self.quiet:
            click.echo(text)

    def title(self, text: str) -> None:
        """Print the heading of a stage, unless quiet."""
        self.say(click.style(text, bold=True))

    def ask(self, *arguments: str) -> Any:
        """What `dspy-registry ... --json` answers. Raises DemoError."""
        return ask(self.registry, self.folder, *arguments)
