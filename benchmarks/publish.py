"""Writes the benchmark sections of README and docs/performance.md from the raw output of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks.charts import draw
from benchmarks.machine import ROOT
from benchmarks.markdown import brief_table, figures_table, peers_table, percentiles_table, steps_table
from benchmarks.report import Report, summary_line

CHARTS: Final = ROOT / "benchmarks" / "results"
RESULTS: Final = CHARTS / "latest.json"
UNPUBLISHED: Final = CHARTS / "unpublished.json"
README: Final = "README.md"
PERFORMANCE: Final = "docs/performance.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

README_ROWS: Final = ("get_cached", "beside_writer", "peers_cached_redis")
"""The rows that README shows. docs/performance.md has all rows."""
README_CHART: Final = "latency-by-store"


class UnpublishableError(ValueError):
    """The measured code is not in any commit."""


def refusal(machine: Mapping[str, Any]) -> str | None:
    """Why these figures must not be published; None when they may be."""
    commit = machine["commit"]
    if commit is None:
        return "the measured code is not in a git repository, so it has no commit to name"
    if commit.endswith("-dirty"):
        base = commit.removesuffix("-dirty")
        return f"the measured code differs from commit {base}: commit it, then measure again"
    return None


def publish(report: Report, root: Path = ROOT) -> None:
    """Draw the charts. Put charts and tables between the markers of README and docs/performance.md.

    Raises UnpublishableError when the measured code is not in any commit; then nothing is written.
    """
    why = refusal(report.machine)
    if why:
        raise UnpublishableError(why)
    charts = draw(report, root / CHARTS.relative_to(ROOT))
    for page, text in sections(report, charts).items():
        replace_section(root / page, text)


def sections(report: Report, charts: Mapping[str, str]) -> dict[str, str]:
    """The text between the markers, by page. `charts` has the captions of the drawn charts, by file name."""
    return {README: _readme(report, charts), PERFORMANCE: _performance(report, charts)}


def replace_section(page: Path, text: str) -> bool:
    """Replace the text between the markers of a page; False if the page or its markers do not exist."""
    if not page.is_file():
        return False
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return True


def _readme(report: Report, charts: Mapping[str, str]) -> str:
    pictures = [_picture(README_CHART, charts[README_CHART], ".")] if README_CHART in charts else []
    shown = [result for name in README_ROWS if (result := report.result(name)) is not None]
    more = f"All rows, also those that missed their target: [{PERFORMANCE}]({PERFORMANCE}#every-row)."
    return "\n\n".join((_circumstances(report), *pictures, brief_table(shown), more))


def _picture(name: str, caption: str, to_root: str) -> str:
    folder = f"{CHARTS.relative_to(ROOT).as_posix()}/"
    return f"![{caption}]({'' if to_root == '.' else f'{to_root}/'}{folder}{name}.svg)"


def _performance(report: Report, charts: Mapping[str, str]) -> str:
    steps = [result for result in report.results if result.name.startswith("steps_")]
    return "\n\n".join(
        (
            _circumstances(report, ".."),
            *[steps_table(result) for result in steps if result.facts],
            "## Charts",
            *[_picture(name, caption, "..") for name, caption in charts.items()],
            "## Every row",
            figures_table([result for result in report.results if result not in steps]),
            "## Percentiles of single operations",
            percentiles_table(report.results),
            "## The other stores",
            peers_table(report),
        )
    )


def _circumstances(report: Report, to_root: str = ".") -> str:
    machine = report.machine
    raw = RESULTS.relative_to(ROOT).as_posix()
    return (
        f"{summary_line(report)} Measured {report.started_at[:10]} at commit {machine['commit']}, "
        f"{machine['system']}, {machine['file system']}. A sync takes {machine['sync, ms']} ms. "
        f"Raw output: [{raw}]({to_root}/{raw})."
    )
