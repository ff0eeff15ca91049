"""The stage in which readers read while a client keeps updating, and the table that shows it live."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import click

from dspy_registry.cli import tables
from dspy_registry.demo.processes import Reader
from dspy_registry.demo.reader_process import Report, Task
from dspy_registry.demo.stages import Demo
from dspy_registry.demo.updates import ARRIVING, LIVE, Marks, Updates

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


def _row(reader: Reader, report: Report) -> tuple[str, ...]:
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


def _rate(report: Report) -> float:
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
