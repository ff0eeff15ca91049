"""The tables of a run as Markdown, for README and docs/performance.md."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.report import WORDS, Report, duration, figure_text, percentiles
from benchmarks.rows import Result
from benchmarks.stores import OURS, PEERS


def compared(result: Result) -> tuple[str, str]:
    """What the figure is compared with ("": nothing), and the rest of the note."""
    first, _, rest = result.note.partition("; ")
    if first.startswith("times "):  # the figure has the word already: 1.5 x
        return first.removeprefix("times "), rest
    return (first, rest) if first.startswith("more than ") else ("", result.note)


def measured(result: Result) -> str:
    """Figure and comparison, such as `1.50 x a plain class with a dict`. Without a figure, the note, which says why."""
    return f"{figure_text(result)} {compared(result)[0]}".rstrip() if result.figure is not None else result.note


def verdict(result: Result) -> str:
    """Whether the target was reached. A missed target is bold; "" means that there is no target."""
    return f"**{WORDS[False]}**" if result.reached is False else WORDS[result.reached]


def brief_table(results: Iterable[Result]) -> str:
    """The short table. It gives circumstances only for rows without a comparison."""
    lines = ["| what | measured | target | |", "| --- | --- | --- | --- |"]
    for result in results:
        against, rest = compared(result)
        what = result.title if against or result.figure is None else _with(result.title, rest)
        lines.append(f"| {what} | {measured(result)} | {result.target} | {verdict(result)} |")
    return "\n".join(lines)


def figures_table(results: Iterable[Result]) -> str:
    """The full table of figures, with the names of the rows. It has no percentiles."""
    lines = ["| row | what | measured | target | |", "| --- | --- | --- | --- | --- |"]
    for result in results:
        what = result.title if result.figure is None else _with(result.title, compared(result)[1])
        lines.append(f"| `{result.name}` | {what} | {measured(result)} | {result.target} | {verdict(result)} |")
    return "\n".join(lines)


def _with(title: str, circumstances: str) -> str:
    return f"{title} ({circumstances})" if circumstances else title


def percentiles_table(results: Iterable[Result]) -> str:
    """The percentiles of single operations as a Markdown table."""
    lines = ["| row | store | median | p90 | p99 | p99.9 | max |", "| --- | --- | ---: | ---: | ---: | ---: | ---: |"]
    for result in results:
        for summary in result.summaries:
            cells = " | ".join(duration(value) for value in percentiles(summary))
            lines.append(f"| `{result.name}` | {summary.label} | {cells} |")
    return "\n".join(lines)


def steps_table(result: Result) -> str:
    """The steps of a read, and the time that each adds to the steps before it. The last line is the registry itself."""
    steps = {label.removesuffix(", ns"): float(taken) for label, taken in result.facts.items()}
    ours = steps.pop(OURS)
    lines = [f"| {result.title} | so far | adds |", "| --- | ---: | ---: |"]
    before = 0.0
    for label, taken in [*steps.items(), ("the registry itself", ours)]:
        lines.append(f"| {label} | {taken:,.0f} ns | {taken - before:,.0f} ns |")
        before = taken
    return "\n".join(lines)


def peers_table(report: Report) -> str:
    """The other stores: version, settings, and how to install them."""
    lines = ["| store | version | settings | to install it |", "| --- | --- | --- | --- |"]
    for peer in PEERS:
        found = report.result(f"peers_cached_{peer.key}")
        version = found.facts.get("version", "not measured") if found else "not measured"
        lines.append(f"| {peer.label} | {version} | {peer.settings} | {peer.install} |")
    return "\n".join(lines)
