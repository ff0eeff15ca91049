"""A run as a document: JSON, a table in the terminal, a table in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.harness import Summary
from benchmarks.rows import Result
from benchmarks.stores import OURS, PEERS

WORDS: Final = {True: "reached", False: "missed", None: ""}


class Report(msgspec.Struct):
    """One run. `reached` repeats for readers of the JSON what each figure says."""

    started_at: str
    seconds: float
    sizes: list[int]
    quick: bool
    machine: dict[str, Any]
    results: list[Result]

    def result(self, name: str) -> Result | None:
        """The result of this name, None when the run did not make it."""
        return next((result for result in self.results if result.name == name), None)


def save(report: Report, file: Path) -> None:
    """Write the report as JSON, readable as text."""
    plain = msgspec.to_builtins(report)
    for result, written in zip(report.results, plain["results"], strict=True):
        written["target"], written["reached"] = result.target, result.reached
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")


def load(file: Path) -> Report:
    """A report that `save` wrote."""
    return msgspec.json.decode(file.read_bytes(), type=Report)


def show(report: Report, console: Console) -> None:
    """The tables: figures against targets, then percentiles."""
    console.print(figures_table(report.results))
    console.print(percentiles_table(report.results))
    console.print(summary_line(report))


def summary_line(report: Report) -> str:
    """How many targets were reached, on what."""
    judged = [result for result in report.results if result.reached is not None]
    reached = sum(1 for result in judged if result.reached)
    unmeasured = sum(1 for result in report.results if result.figure is None)
    told = f"{reached} of {len(judged)} targets reached"
    if unmeasured:
        told += f", {unmeasured} not measured"
    machine = report.machine
    return f"{told}; {report.seconds:.0f} s on {machine['cores']} cores of {machine['processor']}, {machine['python']}."


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
    """Median, p90, p99, p99.9 and maximum."""
    return summary.median, summary.p90, summary.p99, summary.p999, summary.maximum


def figure_text(result: Result) -> str:
    """The figure with its unit, to three digits."""
    if result.figure is None:
        return "–"
    return f"{result.figure:,.0f} {result.unit}" if result.figure >= 100 else f"{result.figure:.3g} {result.unit}"


def duration(nanoseconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if nanoseconds >= size:
            return f"{nanoseconds / size:.3g} {unit}"
    return f"{nanoseconds:.0f} ns"


def markdown(results: Iterable[Result]) -> str:
    """The figures as a Markdown table."""
    lines = ["| what | target | measured | |", "| --- | --- | ---: | --- |"]
    for result in results:
        told = f"{result.title} ({result.note})" if result.note else result.title
        verdict = f"**{WORDS[False]}**" if result.reached is False else WORDS[result.reached]
        lines.append(f"| {told} | {result.target} | {figure_text(result)} | {verdict} |")
    return "\n".join(lines)


def markdown_percentiles(results: Iterable[Result]) -> str:
    """The percentiles of single operations as a Markdown table."""
    lines = ["| row | store | median | p90 | p99 | p99.9 | max |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for result in results:
        for summary in result.summaries:
            cells = " | ".join(duration(value) for value in percentiles(summary))
            lines.append(f"| `{result.name}` | {summary.label} | {cells} |")
    return "\n".join(lines)


def markdown_steps(result: Result) -> str:
    """A path's steps, each with what it adds to the ones before; the last line is the registry itself."""
    steps = {label.removesuffix(", ns"): float(taken) for label, taken in result.facts.items()}
    ours = steps.pop(OURS)
    lines = [f"| {result.title} | so far | adds |", "| --- | ---: | ---: |"]
    before = 0.0
    for label, taken in [*steps.items(), ("the registry itself", ours)]:
        lines.append(f"| {label} | {taken:,.0f} ns | {taken - before:,.0f} ns |")
        before = taken
    return "\n".join(lines)


def markdown_peers(report: Report) -> str:
    """What was compared with, in which version, set up how, and how to install it."""
    lines = ["| store | version | settings | to install it |", "| --- | --- | --- | --- |"]
    for peer in PEERS:
        found = report.result(f"peers_cached_{peer.key}")
        version = found.facts.get("version", "not measured") if found else "not measured"
        lines.append(f"| {peer.label} | {version} | {peer.settings} | {peer.install} |")
    return "\n".join(lines)
