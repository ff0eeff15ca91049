"""Small charts as numbers for SVG. Pure. The templates draw them without style attributes, which the policy forbids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

WIDTH, HEIGHT = 120, 24
STEPS: Final = 20


class Bar(NamedTuple):
    """A bar of a chart, in its units. `failed` is the height of the part that failed, at the bottom."""

    x: float
    y: float
    width: float
    height: float
    failed: float
    failed_y: float


def sparkline(calls: Sequence[int], failed: Sequence[int]) -> list[Bar]:
    """Calls by minute, newest last, as STEPS bars. []: there were none."""
    each = max(1, len(calls) // STEPS)
    counts = [sum(calls[at : at + each]) for at in range(0, len(calls), each)]
    failures = [sum(failed[at : at + each]) for at in range(0, len(failed), each)]
    largest = max(counts, default=0)
    if not largest:
        return []
    step = WIDTH / len(counts)
    bars = []
    for at, (count, wrong) in enumerate(zip(counts, failures, strict=False)):
        if count:
            height = max(1.0, HEIGHT * count / largest)
            part = min(height, height * wrong / count)
            bars.append(
                Bar(*(round(n, 1) for n in (at * step, HEIGHT - height, step - 1, height, part, HEIGHT - part)))
            )
    return bars


class Mark(NamedTuple):
    """A place on the axis of durations."""

    x: float
    label: str


class Range(NamedTuple):
    """One row of the chart of durations: where its quantiles, its longest call and its limit are. None: not known."""

    label: str
    calls: int
    p50: float
    p90: float
    p99: float
    longest: float | None
    limit: float | None
    text: str


class DurationChart(NamedTuple):
    """Durations on a logarithmic axis of `width` units."""

    width: int
    ticks: tuple[Mark, ...]
    rows: tuple[Range, ...]


AXIS_WIDTH: Final = 560


def duration_chart(rows: Sequence[tuple[str, int, float, float, float, float, float]]) -> DurationChart | None:
    """Of (label, calls, p50, p90, p99, longest, limit) in milliseconds, 0: not known. None: nothing to show."""
    shown = [row for row in rows if row[1]]
    values = [value for row in shown for value in row[2:] if value > 0]
    if not values:
        return None
    low = math.floor(math.log10(max(min(values), 0.001)))
    high = max(math.ceil(math.log10(max(values))), low + 1)

    def place(value: float) -> float:
        at = (math.log10(max(value, 10.0**low)) - low) / (high - low)
        return round(min(1.0, at) * AXIS_WIDTH, 1)

    ranges = tuple(
        Range(
            label,
            calls,
            place(p50),
            place(p90),
            place(p99),
            place(longest) if longest else None,
            place(limit) if limit else None,
            f"half within {milliseconds(p50)}, 90 % within {milliseconds(p90)}, 99 % within {milliseconds(p99)}",
        )
        for label, calls, p50, p90, p99, longest, limit in shown
    )
    ticks = tuple(Mark(place(10.0**power), milliseconds(10.0**power)) for power in range(low, high + 1))
    return DurationChart(AXIS_WIDTH, ticks, ranges)


def milliseconds(value: float | None) -> str:
    """A duration for people: 12 ms, 3.4 s, 5 min. "–": not known."""
    if value is None:
        return "–"
    if value < 10:
        return f"{value:.2g} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    if value < 120_000:
        return f"{value / 1000:.3g} s"
    return f"{value / 60_000:.3g} min"


def size(count: float | None) -> str:
    """Bytes for people. "–": not known."""
    if count is None:
        return "–"
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def line(values: Sequence[float], width: int, height: int) -> str:
    """The points of a line through these values, the first at the left; the axis begins at 0."""
    largest = max(values, default=0) or 1
    step = width / max(1, len(values) - 1)
    return " ".join(f"{at * step:.1f},{height - height * value / largest:.1f}" for at, value in enumerate(values))
