"""The writer daemon as users run it: `dspy-registry serve`, in a separate process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.processes import slow_sync
from benchmarks.workers import PATIENCE
from dspy_registry import WriterClient, WriterTimeoutError, WriterUnavailableError


@contextmanager
def serving(path: Path, *options: str, sync_ms: float = 0.0) -> Iterator[None]:
    """A running daemon of the registry in `path`. Its log is beside that folder."""
    command = [sys.executable, "-m", "dspy_registry", "serve", "--path", str(path), *options]
    log = path.with_name(f"{path.name}.log")
    with (
        log.open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env={**os.environ, **slow_sync(sync_ms)}) as process,
    ):
        try:
            _wait_until_ready(process, path, log)
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _wait_until_ready(process: subprocess.Popen[bytes], path: Path, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with WriterClient(path, timeout=1) as client:
                client.status()
                return
        except (WriterUnavailableError, WriterTimeoutError):
            time.sleep(0.02)
    raise RuntimeError(f"the daemon did not start: {log.read_text(errors='replace').strip()}")
