"""The stage in which readers read while a client keeps updating, and the table that shows it live."""

from __future__ import annotations

import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from dspy_registry.cli import tables
from dspy_registry.demo.processes import Demo, Reader
from dspy_registry.demo.reader_process import Reads, Task
from dspy_registry.registry_store.records import ModuleInfo, Requirements

if TYPE_CHECKING:
    from dspy_registry.writer.client.client import WriterClient

ARRIVING: Final = "demo_arrival"
"""The capability of the modules that are added while the readers read."""

LIVE: Final = tuple(
    ModuleInfo(
        name=f"acme.{name}",
        category="prediction",
        capabilities=("summarisation", "reasoning"),
        requirements=Requirements(memory="low", compute="medium"),
        estimated_duration=1,
    )
    for name in ("Summarise", "Classify", "Translate", "Extract")
)
"""Modules whose duration goes up by 1 with each update, so that an old value shows."""

UPDATES_PER_ARRIVAL: Final = 10
SECONDS_TO_FINISH: Final = 10.0
PAUSE: Final = 0.002  # seconds between an acknowledgement and the next update
COLUMNS: Final = ("reader", "pid", "reads/s", "p50", "p99", "revision", "stale")
_SECONDS_PER_REDRAW: Final = 0.25
_SECONDS_PER_LINE: Final = 2.0


def read_under_load(demo: Demo) -> None:
    """Let readers read as fast as they can while a client keeps updating, and count the stale reads."""
    demo.title(f"{demo.readers} reader processes route calls while a client keeps updating through the daemon")
    marks = Marks(demo.folder / "acknowledged")
    demo.stack.callback(marks.close)
    updates = Updates(demo.client, marks)
    demo.stack.callback(updates.close)
    updates.start()
    readers = _start_readers(demo, marks)
    _watch(readers, updates, demo.seconds, quiet=demo.quiet)
    for reader in readers:
        reader.stop()
    for reader in readers:
        reader.close()
    updates.close()
    _note(demo, readers, updates)
    _tell(demo, readers)
    demo.failures += _failures(demo.facts["stale"], readers, updates)


def _start_readers(demo: Demo, marks: Marks) -> list[Reader]:
    task = Task(str(demo.registry), str(marks.path), [info.name for info in LIVE], demo.steady, ARRIVING)
    readers: list[Reader] = []
    for number in range(1, demo.readers + 1):
        readers.append(Reader(number, task, demo.folder))
        demo.stack.callback(readers[-1].close)
    return readers


# What came of it


def _note(demo: Demo, readers: list[Reader], updates: Updates) -> None:
    demo.facts["readers"] = [_reader_facts(reader) for reader in readers]
    demo.facts["reads_per_second"] = round(sum(_rate(reader.total) for reader in readers))
    demo.facts["stale"] = sum(reader.total.stale for reader in readers)
    demo.facts["updates"] = {
        "acknowledged": len(updates.durations),
        "p50_ns": _percentile(updates.durations, 0.50),
        "p99_ns": _percentile(updates.durations, 0.99),
    }


def _reader_facts(reader: Reader) -> dict[str, Any]:
    total = reader.total
    return {
        "pid": reader.pid,
        "reads": total.reads,
        "reads_per_second": round(_rate(total)),
        "p50_ns": _percentile(total.samples, 0.50),
        "p99_ns": _percentile(total.samples, 0.99),
        "revision": total.revision,
        "stale": total.stale,
        "error": total.error,
    }


def _tell(demo: Demo, readers: list[Reader]) -> None:
    if not demo.quiet:
        tables.print_table(COLUMNS, [_row(reader, reader.total) for reader in readers])
    updates = demo.facts["updates"]
    demo.say(
        f"  together {demo.facts['reads_per_second']:,} reads/s, {demo.facts['stale']} stale, while"
        f" {updates['acknowledged']:,} updates were acknowledged:"
        f" p50 {_duration(updates['p50_ns'])}, p99 {_duration(updates['p99_ns'])}"
    )
    demo.say("  latencies are of single reads, sampled; they include the cost of reading the clock\n")


def _failures(stale: int, readers: list[Reader], updates: Updates) -> list[str]:
    found = [f"{stale} reads were older than an update acknowledged before they began"] * bool(stale)
    found += [f"the client: {updates.error}"] * bool(updates.error)
    for reader in readers:
        if reader.total.error:
            found.append(f"reader {reader.number}: {reader.total.error}")
        elif not reader.total.reads:
            found.append(f"reader {reader.number} has read nothing")
    return found


# What is shown meanwhile: a live table on a terminal, elsewhere a line every two seconds


def _watch(readers: Sequence[Reader], updates: Updates, seconds: float, *, quiet: bool) -> None:
    """Show the readers for `seconds`, or until one of them or the updates fail."""
    if quiet:
        _until(seconds, readers, updates, seconds, lambda elapsed: None)
    elif sys.stdout.isatty():
        _draw(readers, updates, seconds)
    else:
        _until(
            seconds, readers, updates, _SECONDS_PER_LINE, lambda elapsed: click.echo(_line(elapsed, readers, updates))
        )


def _until(
    seconds: float, readers: Sequence[Reader], updates: Updates, show_every: float, show: Callable[[float], None]
) -> None:
    began = shown = time.monotonic()
    while (now := time.monotonic()) - began < seconds:
        if updates.error or any(reader.total.error for reader in readers):
            return
        if now - shown >= show_every:
            shown = now
            show(now - began)
        time.sleep(min(_SECONDS_PER_REDRAW, seconds))


def _draw(readers: Sequence[Reader], updates: Updates, seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False, transient=True) as live:
        _until(
            seconds,
            readers,
            updates,
            _SECONDS_PER_REDRAW,
            lambda elapsed: live.update(_table(elapsed, seconds, readers, updates), refresh=True),
        )


def _table(elapsed: float, seconds: float, readers: Sequence[Reader], updates: Updates) -> Any:
    from rich import box
    from rich.table import Table

    caption = f"{elapsed:.0f} of {seconds:.0f} s · {len(updates.durations):,} updates acknowledged"
    table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", header_style="bold")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right", style="cyan" if number == 0 else None)
    for reader in readers:
        *cells, stale = _row(reader, reader.latest)
        table.add_row(*cells, f"[bold red]{stale}" if reader.total.stale else stale)
    return table


def _row(reader: Reader, report: Reads) -> tuple[str, ...]:
    """A reader's line of the table. Rates and latencies are the report's; stale reads are all the reader's."""
    if not report.seconds:
        return str(reader.number), str(reader.pid), "starting", "", "", "", ""
    return (
        str(reader.number),
        str(reader.pid),
        f"{_rate(report):,.0f}",
        _duration(_percentile(report.samples, 0.50)),
        _duration(_percentile(report.samples, 0.99)),
        str(report.revision),
        str(reader.total.stale),
    )


def _line(elapsed: float, readers: Sequence[Reader], updates: Updates) -> str:
    reports = [reader.latest for reader in readers]
    samples = [sample for report in reports for sample in report.samples]
    return (
        f"{elapsed:4.0f} s  {sum(map(_rate, reports)):>12,.0f} reads/s"
        f"  p50 {_duration(_percentile(samples, 0.50))}  p99 {_duration(_percentile(samples, 0.99))}"
        f"  {len(updates.durations):,} updates acknowledged"
        f"  {sum(reader.total.stale for reader in readers)} stale reads"
    )


def _rate(report: Reads) -> float:
    """Reads per second."""
    return report.reads / report.seconds if report.seconds else 0.0


def _percentile(samples: list[int], part: float) -> int:
    """The sample below which `part` (0 to 1) of them lie; 0 when there are no samples."""
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0


def _duration(nanoseconds: int) -> str:
    """`0.42 µs`, `5.91 ms`."""
    microseconds = nanoseconds / 1000
    return f"{microseconds:.2f} µs" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"


# The client that keeps updating, and marks what was acknowledged


class Marks:
    """A file of what was acknowledged: a number per live module, then the count of new modules. Readers map it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8 * (len(LIVE) + 1)))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.numbers = memoryview(self._map).cast("Q")

    def close(self) -> None:
        """Unmap the file; it stays on disk."""
        self.numbers.release()
        self._map.close()


class Updates:
    """Updates in a background thread until `close`. Each is marked once it is acknowledged.

    `durations` has the nanoseconds from each call to its acknowledgement; `error` is what went wrong, or None.
    """

    def __init__(self, client: WriterClient, marks: Marks) -> None:
        self.durations: list[int] = []
        self.error: str | None = None
        self._client = client
        self._marks = marks
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Register the modules to update, then start the thread."""
        self._client.register_modules(LIVE)
        for place, info in enumerate(LIVE):
            self._marks.numbers[place] = info.estimated_duration
        self._thread.start()

    def close(self) -> None:
        """Stop after the current update."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_TO_FINISH)

    def _run(self) -> None:
        try:
            for place, info in _endless():
                self._update(place, info)
                if self._stopped.wait(PAUSE):
                    return
        except Exception as error:  # any error: the demo has failed and says so
            self.error = f"{type(error).__name__}: {error}"

    def _update(self, place: int, info: ModuleInfo) -> None:
        began = time.perf_counter_ns()
        self._client.register_module(info)
        self.durations.append(time.perf_counter_ns() - began)
        # Marked after the acknowledgement: a read that begins later and does not see the update is stale.
        self._marks.numbers[place] = info.estimated_duration if place < len(LIVE) else self._marks.numbers[place] + 1


def _endless() -> Iterator[tuple[int, ModuleInfo]]:
    """(place in the marks, module to register): the live modules in turn, and a new module after every tenth update."""
    number = 0
    while True:
        number += 1
        turn, place = divmod(number, len(LIVE))
        yield place, msgspec.structs.replace(LIVE[place], estimated_duration=turn + 2)
        if number % UPDATES_PER_ARRIVAL == 0:
            yield (
                len(LIVE),
                ModuleInfo(f"acme.arrivals.Number{number // UPDATES_PER_ARRIVAL}", capabilities=(ARRIVING,)),
            )
