"""`dspy-registry` in the process of the test, which is fast, and as its users run it: in its own process."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from dspy_registry.cli.program import main
from tests.support import fork_server
from tests.support.fork_server import Forked

COMMAND = (sys.executable, "-W", "error", "-m", "dspy_registry")


def run(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command inside this process; what it prints is captured, and its environment holds for it alone."""
    given, out, err = _stream(stdin), _stream(), _stream()
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.multiple(sys, stdin=given, stdout=out, stderr=err),
    ):
        try:
            main([*map(str, arguments)])
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return subprocess.CompletedProcess([*map(str, arguments)], status, _text(out), _text(err))


def run_process(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in its own process: for what only a process shows."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        env={"DSPY_REGISTRY_WAIT": "0", **os.environ, **environment},
    )


def run_in_child(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """The same in a process that may be killed, and has imported the command already."""
    there = {"DSPY_REGISTRY_WAIT": "0", **os.environ, **environment}
    return fork_server.run(__name__, "main_in_child", *map(str, arguments), stdin=stdin, environment=there)


def main_in_child(*arguments: str) -> None:
    """In the child."""
    warnings.simplefilter("error")
    main([*arguments])


class _Stream(io.BytesIO):
    name = "<stdin>"  # as the real one has; messages show it


def _stream(text: str = "") -> io.TextIOWrapper:
    return io.TextIOWrapper(_Stream(text.encode()), encoding="utf-8", newline="")


def _text(stream: io.TextIOWrapper) -> str:
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def answer(*arguments: str | Path, stdin: str = "") -> Any:
    """The one JSON document that a command which succeeds prints."""
    done = run(*arguments, "--json", stdin=stdin)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refusal(*arguments: str | Path, stdin: str = "") -> tuple[int, dict[str, str]]:
    """Exit status and JSON error of a command that fails."""
    done = run(*arguments, "--json", stdin=stdin)
    assert done.stdout == ""
    error: dict[str, str] = json.loads(done.stderr)["error"]
    assert set(error) == {"type", "message", "remedy"}
    return done.returncode, error


@contextmanager
def daemon(path: Path) -> Iterator[Forked]:
    """A running `dspy-registry serve`; unless it has ended, it must end well when it is asked to."""
    process = fork_server.start(__name__, "main_in_child", "serve", "--path", path, stderr=subprocess.PIPE)
    try:
        lines = [process.stderr.readline()]
        while lines[-1] and " serves " not in lines[-1]:
            lines.append(process.stderr.readline())
        assert f"process {process.pid} serves {path}" in lines[-1], lines
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.close()
