"""What readers of README and docs/performance.md see: written by this module, from the raw output of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from benchmarks.charts import draw
from benchmarks.report import Report, markdown, markdown_peers, markdown_percentiles, markdown_steps, summary_line

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results" / "latest.json"
CHARTS: Final = RESULTS.parent
README: Final = ROOT / "README.md"
PERFORMANCE: Final = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def publish(report: Report, root: Path = ROOT) -> None:
    """Draw the charts, and put charts and tables between the markers of README and docs/performance.md."""
    charts = draw(report, root / CHARTS.relative_to(ROOT))
    replace_section(root / README.relative_to(ROOT), _readme(report, charts))
    replace_section(root / PERFORMANCE.relative_to(ROOT), _performance(report))


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


def _readme(report: Report, charts: dict[str, str]) -> str:
    pictures = "\n\n".join(
        f"![{caption}]({(CHARTS / name).relative_to(ROOT).as_posix()}.svg)" for name, caption in charts.items()
    )
    judged = [result for result in report.results if not result.name.startswith("steps_")]
    return "\n\n".join((_told(report), pictures, markdown(judged), markdown_peers(report)))


def _performance(report: Report) -> str:
    steps = [markdown_steps(result) for result in report.results if result.name.startswith("steps_") and result.facts]
    return "\n\n".join((_told(report, ".."), *steps, markdown_percentiles(report.results)))


def _told(report: Report, to_root: str = ".") -> str:
    machine = report.machine
    raw = RESULTS.relative_to(ROOT).as_posix()
    return (
        f"{summary_line(report)} Measured {report.started_at[:10]} at commit {machine['commit']}, "
        f"{machine['system']}, {machine['file system']}, a sync takes {machine['sync, ms']} ms. "
        f"Raw output: [{raw}]({to_root}/{raw})."
    )
