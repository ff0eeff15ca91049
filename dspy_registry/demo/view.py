"""What the demo shows while it runs: a live table on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from dspy_registry.demo.readers import Reader, Report, percentile

if TYPE_CHECKING:
    from dspy_registry.demo.updates import Updates

COLUMNS: Final = ("reader", "pid", "reads/s", "p50", "p99", "revision", "stale")
REDRAWN_EVERY: Final = 0.25  # seconds
LINE_EVERY: Final = 2.0  # seconds


def watch(readers: Sequence[Reader], updates: Updates, seconds: float, *, quiet: bool) -> None:
    """Show how the readers fare for so many seconds, or until one of them or the updates fail."""
    if quiet:
        _until(seconds, readers, updates, seconds, lambda elapsed: None)
    elif sys.stdout.isatty():
        _draw(readers, updates, seconds)
    else:
        _until(seconds, readers, updates, LINE_EVERY, lambda elapsed: click.echo(_line(elapsed, readers, updates)))


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
        time.sleep(min(REDRAWN_EVERY, seconds))


def _draw(readers: Sequence[Reader], updates: Updates, seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False, transient=True) as live:
        _until(
            seconds,
            readers,
            updates,
            REDRAWN_EVERY,
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
        *cells, stale = row(reader, reader.latest, reader.total.stale)
        table.add_row(*cells, f"[bold red]{stale}" if reader.total.stale else stale)
    return table


def row(reader: Reader, report: Report, stale: int) -> tuple[str, ...]:
    """A reader's line of the table, from one report or from all together."""
    if not report.seconds:
        return str(reader.number), str(reader.pid), "starting", "", "", "", ""
    return (
        str(reader.number),
        str(reader.pid),
        f"{rate(report):,.0f}",
        duration(percentile(report.samples, 0.50)),
        duration(percentile(report.samples, 0.99)),
        str(report.revision),
        str(stale),
    )


def _line(elapsed: float, readers: Sequence[Reader], updates: Updates) -> str:
    reports = [reader.latest for reader in readers]
    samples = [sample for report in reports for sample in report.samples]
    return (
        f"{elapsed:4.0f} s  {sum(map(rate, reports)):>12,.0f} reads/s"
        f"  p50 {duration(percentile(samples, 0.50))}  p99 {duration(percentile(samples, 0.99))}"
        f"  {len(updates.durations):,} updates acknowledged"
        f"  {sum(reader.total.stale for reader in readers)} stale reads"
    )


def rate(report: Report) -> float:
    """Reads per second."""
    return report.reads / report.seconds if report.seconds else 0.0


def duration(nanoseconds: int) -> str:
    """`0.42 µs`, `5.91 ms`."""
    microseconds = nanoseconds / 1000
    return f"{microseconds:.2f} µs" if microseconds < 1000 else f"{microseconds / 1000:.2f} ms"
