"""`dspy-registry` as its users run it: a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-W", "error", "-m", "dspy_registry")


def run(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=90,
        env={"DSPY_REGISTRY_WAIT": "0", **os.environ, **environment},
    )


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
def daemon(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A running `dspy-registry serve`; unless it has ended, it must end well when it is asked to."""
    process = subprocess.Popen([*COMMAND, "serve", "--path", str(path)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
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
        process.stderr.close()
