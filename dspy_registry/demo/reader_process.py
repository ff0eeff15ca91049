"""One reader process under load, for the demo: `python -m dspy_registry.demo.reader_process`.

It looks up what a worker looks up before a call, as fast as it can. It checks each read that shows an updated value:
the value must not be older than an update acknowledged before the read began. Its task is one JSON line on stdin, its
reports are JSON lines on stdout. It ends when stdin is closed, so it never outlives the process that started it.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from dspy_registry.readers.registry import Registry
from dspy_registry.readers.routing import timeout_ms

ROUNDS_PER_SAMPLE: Final = 16


class Task(msgspec.Struct, frozen=True):
    """What to read.

    `live` are modules that are being updated. The file `marks` holds 64-bit numbers in native byte order: number i is
    the last acknowledged `estimated_duration` of live[i], and the number after these counts the acknowledged modules
    with the capability `arriving`. `steady` are modules that do not change. `report_every` is in seconds.
    """

    path: str
    marks: str
    live: list[str]
    steady: list[str]
    arriving: str
    report_every: float = 0.25


class Reads(msgspec.Struct):
    """What happened since the last report, one line on stdout.

    `samples` are nanoseconds of single reads, and include the cost of reading the clock. `revision` is the newest one
    seen. `stale` counts reads that were too old. `error` is what ended the reader, None while it reads.
    """

    reads: int = 0
    seconds: float = 0.0
    stale: int = 0
    revision: int = 0
    samples: list[int] = []
    error: str | None = None


class Load:
    """Rounds of look-ups, and the report on them."""

    def __init__(self, registry: Registry, task: Task, marks: memoryview[int]) -> None:
        self._registry = registry
        self._live = list(enumerate(task.live))
        self._steady = task.steady
        self._arriving = task.arriving
        self._marks = marks
        self._names = (*task.live, *task.steady)
        self._rounds = 0
        self._began = time.perf_counter()
        self.report = Reads()

    def round(self) -> None:
        """Read each live module by each look-up that shows its duration, and the steady ones as a worker does."""
        registry, marks = self._registry, self._marks
        stale = 0
        for place, name in self._live:
            acknowledged = marks[place]
            stale += registry.get_module(name).estimated_duration < acknowledged
            acknowledged = marks[place]
            stale += registry.routing_recommendation(name).timeout < timeout_ms(acknowledged, 1.0)
        acknowledged = marks[len(self._live)]
        stale += len(registry.find_by_capability(self._arriving)) < acknowledged
        for name in self._steady:
            registry.get_module(name)
            registry.routing_recommendation(name, input_size=5000, optimize_latency=True)
            registry.find(capabilities=("reasoning",), pool_type="general", max_memory="medium")
        self.report.stale += stale
        self.report.reads += 2 * len(self._live) + 1 + 3 * len(self._steady)
        self._rounds += 1
        if self._rounds % ROUNDS_PER_SAMPLE == 0:
            self._sample(self._names[self._rounds // ROUNDS_PER_SAMPLE % len(self._names)])

    def _sample(self, name: str) -> None:
        """Time one read of each kind alone."""
        registry, clock = self._registry, time.perf_counter_ns
        start = clock()
        registry.get_module(name)
        looked_up = clock()
        registry.routing_recommendation(name, input_size=5000)
        routed = clock()
        registry.find_by_capability("reasoning")
        found = clock()
        self.report.reads += 3
        self.report.samples += (looked_up - start, routed - looked_up, found - routed)

    def take_report(self) -> Reads:
        """What happened since the last one was taken."""
        now = time.perf_counter()
        taken, self.report = self.report, Reads()
        taken.seconds, self._began = now - self._began, now
        taken.revision = self._registry.revision
        return taken


def run(task: Task, stopped: threading.Event) -> None:
    """Read and report until `stopped` is set."""
    with Path(task.marks).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        marks = memoryview(mapped).cast("Q")
        try:
            with Registry(task.path) as registry:
                load = Load(registry, task, marks)
                while not stopped.is_set():
                    until = time.perf_counter() + task.report_every
                    while time.perf_counter() < until:
                        load.round()
                    _send(load.take_report())
        finally:
            marks.release()


def _send(report: Reads) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Take a task from stdin and work on it until stdin ends."""
    task = msgspec.json.decode(sys.stdin.buffer.readline(), type=Task)
    stopped = threading.Event()

    def wait_for_end() -> None:
        os.read(sys.stdin.fileno(), 1)  # not through the buffer: its lock would delay the end of the interpreter
        stopped.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    try:
        run(task, stopped)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except Exception as error:
        _send(Reads(error=f"{type(error).__name__}: {error}"))


if __name__ == "__main__":
    main()
