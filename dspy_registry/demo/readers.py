"""The demo's reader processes, and what they have reported so far."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

import msgspec

from dspy_registry.demo.process import end

SECONDS_TO_END: Final = 5.0
MOST_SAMPLES: Final = 200_000


class Report(msgspec.Struct):
    """A line of a reader: what happened since the one before. Fields are those of the reader's own Report."""

    reads: int = 0
    seconds: float = 0.0
    stale: int = 0
    revision: int = 0
    samples: list[int] = []
    error: str | None = None


class Reader:
    """A process that reads as workers do. `latest` is its newest report, `total` all of them together.

    Of a long run, `total` has one sample in two, four, … and no more than MOST_SAMPLES.
    """

    def __init__(self, number: int, task: dict[str, Any], folder: Path) -> None:
        self.number = number
        self.latest = Report()
        self.total = Report(samples=[])
        self._one_in = 1
        self._stderr_path = folder / f"reader-{number}.err"
        with self._stderr_path.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "dspy_registry.demo.reader_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                start_new_session=True,  # Ctrl-C in the terminal is for the demo, which ends its readers itself
            )
        self._send(msgspec.json.encode(task) + b"\n")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def stop(self) -> None:
        """Ask for its end; `close` waits for it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead already, and `_listen` says so
            self._process.stdin.close()

    def close(self) -> None:
        """End the process, if need be by force, and take in what it said last."""
        self.stop()
        end(self._process, SECONDS_TO_END)
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
                self._take(msgspec.json.decode(line, type=Report))
        status = self._process.wait()
        if status and self.total.error is None:
            said = self._stderr_path.read_text(errors="replace").strip().splitlines()
            self.total.error = f"ended with status {status}: {said[-1] if said else 'it said nothing'}"

    def _take(self, report: Report) -> None:
        total = self.total
        total.reads += report.reads
        total.seconds += report.seconds
        total.stale += report.stale
        total.revision = max(total.revision, report.revision)
        total.samples += report.samples[:: self._one_in]
        if len(total.samples) > MOST_SAMPLES:
            del total.samples[::2]
            self._one_in *= 2
        total.error = total.error or report.error
        if report.error is None:
            self.latest = report


def percentile(samples: list[int], part: float) -> int:
    """The sample below which this part of them lies; 0 when there is none."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0
