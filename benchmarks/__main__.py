"""`python -m benchmarks`: measure, show the figures, and write them to a file. No figure decides the exit code."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from benchmarks.machine import machine
from benchmarks.publish import RESULTS, UNPUBLISHED, UnpublishableError, publish, refusal
from benchmarks.report import Report, figure_text, load, save, show
from benchmarks.rows import Result, Row
from benchmarks.suite import FULL_SIZES, QUICK_SIZES, Clock, bench_of, chosen, file_system, run

_PLAIN_WIDTH = 160  # columns, where the output is a pipe or a file


def main(arguments: list[str] | None = None) -> int:
    """0 when every row ran, 1 when one failed or the run must not be published, 2 for wrong arguments."""
    asked = _parsed(arguments)
    if asked.report_only:
        return _published(asked.json or RESULTS)
    try:
        rows = chosen(asked.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    sizes = tuple(asked.sizes) or (QUICK_SIZES if asked.quick else FULL_SIZES)
    report, failed = _measured(rows, sizes, asked)
    show(report, Console(width=None if sys.stdout.isatty() else _PLAIN_WIDTH))
    unpublished = 0
    if asked.json:
        save(report, asked.json)
    elif _is_full(asked):
        file = UNPUBLISHED if refusal(report.machine) else RESULTS
        save(report, file)
        unpublished = _published(file)
    return 1 if failed else unpublished


def _is_full(asked: argparse.Namespace) -> bool:
    return not (asked.quick or asked.only or asked.sizes)


def _published(file: Path) -> int:
    """Publish the run in this file; 1 when it must not be published."""
    try:
        publish(load(file))
    except UnpublishableError as error:
        print(f"{file} is not published: {error}", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: only to see that all rows run")
    parser.add_argument("--sizes", type=_numbers, default=[], help="sizes of registries, such as 6,1000,100000")
    parser.add_argument("--only", type=lambda text: text.split(","), default=[], help="rows to measure")
    parser.add_argument("--json", type=Path, help="file for the raw output, which is then not published")
    parser.add_argument("--report-only", action="store_true", help=f"only publish --json, or {RESULTS.name}")
    parser.add_argument("--folder", type=Path, help="folder to work in, on a disk (default: a temporary folder)")
    return parser.parse_args(arguments)


def _numbers(text: str) -> list[int]:
    return [int(number.replace("_", "")) for number in text.split(",")]


def _measured(rows: list[Row], sizes: tuple[int, ...], asked: argparse.Namespace) -> tuple[Report, list[str]]:
    console = Console(stderr=True)
    started_at, started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    results: list[Result] = []
    columns = (TextColumn("{task.description:50}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=1.0)
        clock = Clock(rows, lambda share, what: progress.update(task, completed=share, description=what))
        with bench_of(sizes, quick=asked.quick, say=clock.say, folder=asked.folder) as bench:
            about = machine(bench.folder, file_system(bench.folder))
            why = refusal(about)
            if why and _is_full(asked) and not asked.json:  # the user should know before the minutes of measuring
                console.print(f"This run will not be published: {why}", highlight=False)
            for row in rows:
                clock.begin(row)
                for result in run([row], bench):
                    results.append(result)
                    console.print(f"{result.name:32} {figure_text(result):>14}  {result.target}", highlight=False)
            failed = bench.failed
    seconds = round(time.monotonic() - started, 1)
    return Report(started_at, seconds, list(sizes), asked.quick, about, results), failed


if __name__ == "__main__":
    sys.exit(main())
