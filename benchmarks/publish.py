"""What readers of README and docs/performance.md see: written by this module, from the raw output of a run."""

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

README_ROWS: Final = (
    "get_cached",
    "routing_cached",
    "get_uncached",
    "peers_cached_redis",
    "peers_cached_sqlite",
    "beside_writer",
    "sizes_cached",
    "reader_memory",
    "find_uncached",
    "register_small",
    "group_commit",
    "manifest_saved_in_tree",
    "usage_record",
)
"""What README shows, and with it every row whose target was missed."""


class UnpublishableError(ValueError):
    """Nobody could tell from what the figures were measured."""


def refusal(machine: Mapping[str, Any]) -> str | None:
    """Why figures from here are not published; None when they may be."""
    commit = machine["commit"]
    if commit is None:
        return "what was measured is in no git repository, so that no commit can be named"
    if commit.endswith("-dirty"):
        return f"what was measured is not what commit {commit.removesuffix('-dirty')} holds: commit, and measure again"
    return None


def publish(report: Report, root: Path = ROOT) -> None:
    """Draw the charts, and put charts and tables between the markers of README and docs/performance.md.

    Raises UnpublishableError, before anything is written, for a run of what no commit holds.
    """
    why = refusal(report.machine)
    if why:
        raise UnpublishableError(why)
    charts = draw(report, root / CHARTS.relative_to(ROOT))
    for page, text in sections(report, charts).items():
        replace_section(root / page, text)


def sections(report: Report, charts: Mapping[str, str]) -> dict[str, str]:
    """What stands between the markers of each page. `charts` are those that were drawn: caption by name of file."""
    return {README: _readme(report, charts), PERFORMANCE: _performance(report)}


def replace_section(page: Path, text: str) -> bool:
    """Put text between the markers of a page; False when there is no page, or it has no markers."""
    if not page.is_file():
        return False
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return False
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
    return True


def _readme(report: Report, charts: Mapping[str, str]) -> str:
    pictures = [f"![{caption}]({(CHARTS / name).relative_to(ROOT).as_posix()}.svg)" for name, caption in charts.items()]
    shown = [result for result in report.results if result.name in README_ROWS or result.reached is False]
    more = f"Every row, with percentiles: [{PERFORMANCE}]({PERFORMANCE}#every-row)."
    return "\n\n".join((_told(report), *pictures, brief_table(shown), more))


def _performance(report: Report) -> str:
    steps = [result for result in report.results if result.name.startswith("steps_")]
    return "\n\n".join(
        (
            _told(report, ".."),
            *[steps_table(result) for result in steps if result.facts],
            "## Every row",
            figures_table([result for result in report.results if result not in steps]),
            "## Percentiles of single operations",
            percentiles_table(report.results),
            "## What it is compared with",
            peers_table(report),
        )
    )


def _told(report: Report, to_root: str = ".") -> str:
    machine = report.machine
    raw = RESULTS.relative_to(ROOT).as_posix()
    return (
        f"{summary_line(report)} Measured {report.started_at[:10]} at commit {machine['commit']}, "
        f"{machine['system']}, {machine['file system']}, a sync takes {machine['sync, ms']} ms. "
        f"Raw output: [{raw}]({to_root}/{raw})."
    )
