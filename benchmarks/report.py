"""A run as a document: JSON, and tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.harness import NANOSECONDS, Summary
from benchmarks.rows import Result

WORDS: Final = {True: "reached", False: "missed", None: ""}


class Report(msgspec.Struct):
    """One run: start (UTC), seconds taken, machine and results."""

    started_at: str
    seconds: float
    sizes: list[int]
    quick: bool
    machine: dict[str, Any]
    results: list[Result]

    def result(self, name: str) -> Result | None:
        """The result of this name; None when the run has none."""
        return next((result for result in self.results if result.name == name), None)


def save(report: Report, file: Path) -> None:
    """Write the report as JSON, indented, with the `target` and `reached` of each result for other programs."""
    plain = msgspec.to_builtins(report)
    for result, written in zip(report.results, plain["results"], strict=True):
        written["target"], written["reached"] = result.target, result.reached
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")


def load(file: Path) -> Report:
    """Read a report that `save` wrote."""
    return msgspec.json.decode(file.read_bytes(), type=Report)


def show(report: Report, console: Console) -> None:
    """Print the tables: figures and targets, then percentiles."""
    console.print(figures_table(report.results))
    console.print(percentiles_table(report.results))
    console.print(summary_line(report))


def summary_line(report: Report) -> str:
    """How many targets were reached, and on which machine."""
    judged = [result for result in report.results if result.reached is not None]
    reached = sum(1 for result in judged if result.reached)
    unmeasured = sum(1 for result in report.results if result.figure is None)
    line = f"{reached} of {len(judged)} targets reached"
    if unmeasured:
        line += f", {unmeasured} not measured"
    machine = report.machine
    return f"{line}; {report.seconds:.0f} s on {machine['cores']} cores of {machine['processor']}, {machine['python']}."


def figures_table(results: Iterable[Result]) -> Table:
    """One line per result."""
    table = Table(title="Figures and targets", title_justify="left")
    for heading, justify in (("row", "left"), ("target", "left"), ("figure", "right"), ("", "left"), ("", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    colours = {True: "green", False: "red", None: "dim"}
    for result in results:
        verdict = WORDS[result.reached]
        colour = colours[result.reached]
        table.add_row(
            escape(f"{result.title}\n[{result.name}]"),
            result.target,
            figure_text(result),
            f"[{colour}]{verdict}[/{colour}]",
            escape(result.note),
        )
    return table


def percentiles_table(results: Iterable[Result]) -> Table:
    """Percentiles of single operations, for each store of each result."""
    table = Table(title="Single operations", title_justify="left")
    table.add_column("row")
    table.add_column("store")
    for heading in ("median", "p90", "p99", "p99.9", "max", "count"):
        table.add_column(heading, justify="right")
    for result in results:
        for number, summary in enumerate(result.summaries):
            cells = [duration(value) for value in percentiles(summary)]
            name = result.name if number == 0 else ""
            table.add_row(name, escape(summary.label), *cells, f"{summary.count:,}")
    return table


def percentiles(summary: Summary) -> tuple[float, ...]:
    """Median, p90, p99, p99.9 and maximum, in nanoseconds whatever the summary's unit is."""
    values = summary.median, summary.p90, summary.p99, summary.p999, summary.maximum
    return tuple(value * NANOSECONDS[summary.unit] for value in values)


def figure_text(result: Result) -> str:
    """The figure with its unit, to three digits. "–" means not measured."""
    if result.figure is None:
        return "–"
    if result.figure >= 100 or result.figure == 0 or result.unit == "commits":
        return f"{result.figure:,.0f} {result.unit}"
    return f"{result.figure:#.3g}".rstrip(".") + f" {result.unit}"


def duration(nanoseconds: float) -> str:
    """A duration in s, ms, µs or ns: the largest unit that gives at least 1."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"
