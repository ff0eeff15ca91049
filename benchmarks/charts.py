"""The charts of a run, each as SVG and PNG. A chart is drawn only if the run measured its figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Report, duration

OURS_COLOUR, OTHER_COLOUR, SECOND_COLOUR, THIRD_COLOUR = "#2563c9", "#8a8f98", "#d9730d", "#4d8c57"
_INK, _GRID = "#24292f", "#e3e6ea"
_SETTINGS: Final[dict[str, Any]] = {
    "svg.hashsalt": "dspy-module-registry",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _GRID,
    "legend.frameon": False,
}


def draw(report: Report, folder: Path) -> dict[str, str]:
    """Draw all possible charts, as `.svg` and `.png`. Returns captions by file name, without the ending."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, str] = {}
    for name, caption, chart in CHARTS:
        with plt.rc_context(_SETTINGS):
            figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
            if chart(report, axes):
                # No date and no version: the same figures make the same file.
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
                figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
                drawn[name] = caption
            plt.close(figure)
    return drawn


def _latency(report: Report, axes: Any) -> bool:
    """The median is a dot; the line ends at the 99th percentile."""
    rows = _latency_rows(report)
    if not rows:
        return False
    rows.sort(key=lambda row: -row[1])
    for place, (_, median, p99, is_ours) in enumerate(rows):
        colour = OURS_COLOUR if is_ours else OTHER_COLOUR
        axes.plot([median, max(median, p99)], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot([median], [place], "o", color=colour, markersize=8)
        axes.annotate(
            duration(median),
            (max(median, p99), place),
            textcoords="offset points",
            xytext=(8, 0),
            va="center",
            fontsize=9,
            color=colour if is_ours else _INK,
        )
    axes.set_yticks(range(len(rows)), [row[0] for row in rows])
    for text, row in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_color(OURS_COLOUR if row[3] else _INK)
    axes.set_xscale("log")
    axes.set_xlim(right=max(row[2] for row in rows) * 4)
    axes.xaxis.set_major_formatter(lambda value, _place: duration(value))
    axes.set_xlabel("log scale; the dot and the number are the median, the line ends at the 99th percentile")
    axes.set_title("One read of a module, by store")
    axes.grid(axis="x")
    return True


def _latency_rows(report: Report) -> list[tuple[str, float, float, bool]]:
    """For each store: label, median and p99 in nanoseconds, and whether it is the registry."""
    wanted = [
        ("get_cached", 0, "registry, repeated", True),
        ("get_cached", 1, "plain class with a dict", False),
        ("get_uncached", 0, "registry, first read", True),
        ("get_uncached", 1, "py-lmdb + msgspec by hand", False),
        ("snapshot_uncached", 0, "registry, in a snapshot", True),
    ]
    wanted.extend(
        (result.name, 1, result.summaries[1].label, False)
        for result in report.results
        if result.name.startswith("peers_cached_") and len(result.summaries) == 2
    )
    rows = []
    for name, index, label, is_ours in wanted:
        found = report.result(name)
        if found is not None and len(found.summaries) > index:
            summary = found.summaries[index]
            median = found.facts.get(f"{summary.label}, ns", summary.median)
            rows.append((label, float(median), summary.p99, is_ours))
    return rows


def _throughput(report: Report, axes: Any) -> bool:
    found = report.result("throughput")
    if found is None or found.figure is None:
        return False
    by_store: dict[str, dict[str, float]] = found.facts["reads/s by processes"]
    colours = iter((OURS_COLOUR, THIRD_COLOUR, OTHER_COLOUR, SECOND_COLOUR))
    for label, rates in by_store.items():
        colour = next(colours)
        counts = [int(count) for count in rates]
        style = "--" if "beside" in label else "-"
        axes.plot(counts, list(rates.values()), style, marker="o", color=colour, linewidth=2, label=label)
    axes.set_yscale("log")
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.set_xlabel(f"reader processes, on {report.machine['cores']} cores")
    axes.set_ylabel("reads a second, log scale")
    axes.set_title("Repeated reads of all processes together")
    axes.grid(axis="y")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return True


def _sizes(report: Report, axes: Any) -> bool:
    drawn = False
    for name, label, colour in (
        ("sizes_uncached", "first read of a name", SECOND_COLOUR),
        ("sizes_cached", "repeated read, freshness verified", OURS_COLOUR),
    ):
        found = report.result(name)
        if found is None or not found.summaries:
            continue
        sizes = [int(summary.label.split()[0].replace(",", "")) for summary in found.summaries]
        medians = [float(found.facts[f"{summary.label}, ns"]) for summary in found.summaries]
        axes.plot(sizes, medians, "-o", color=colour, linewidth=2, label=label)
        for size, median in zip(sizes, medians, strict=True):
            axes.annotate(
                duration(median), (size, median), textcoords="offset points", xytext=(0, 8), ha="center", fontsize=9
            )
        drawn = True
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(bottom=20, top=20_000)
    axes.xaxis.set_major_formatter(lambda value, _place: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(lambda value, _place: duration(value))
    axes.set_xlabel("modules in the registry, log scale")
    axes.set_ylabel("time of one read, log scale")
    axes.set_title("One read by size of the registry (median)")
    axes.grid(axis="y")
    axes.legend(loc="upper left")
    return drawn


def _memory(report: Report, axes: Any) -> bool:
    found = report.result("memory_by_processes")
    if found is None or found.figure is None:
        return False
    for (label, used), colour in zip(found.facts["MiB"].items(), (OURS_COLOUR, OTHER_COLOUR), strict=True):
        counts = [int(count) for count in used]
        axes.plot(counts, list(used.values()), "-o", color=colour, linewidth=2, label=label)
        axes.annotate(
            f"{used[list(used)[-1]]:,.0f} MiB",
            (counts[-1], used[list(used)[-1]]),
            textcoords="offset points",
            xytext=(-8, 8),
            ha="right",
            fontsize=9,
        )
    axes.set_xticks(counts)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("reader processes")
    axes.set_ylabel("MiB of all processes together (proportional set size)")
    axes.set_title(f"Memory of readers of {found.facts['size']:,} modules")
    axes.grid(axis="y")
    axes.legend(loc="upper left")
    return True


Chart = Callable[[Report, Any], bool]

CHARTS: Final[tuple[tuple[str, str, Chart], ...]] = (
    ("latency-by-store", "Latency of one read by store, on a log scale", _latency),
    ("throughput-by-processes", "Throughput by number of reader processes, with and without a writer", _throughput),
    ("latency-by-size", "Latency of one read by size of the registry", _sizes),
    ("memory-by-processes", "Memory by number of reader processes", _memory),
)
