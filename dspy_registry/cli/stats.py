"""`stats`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.usage import ModuleUsage

_COLUMNS: Final = (
    "name",
    "calls",
    "errors",
    "failing",
    "p50 ms",
    "p90 ms",
    "p99 ms",
    "tokens in",
    "tokens out",
    "usd/call",
    "last used",
)
_SPARE: Final = ("last used", "tokens out", "tokens in", "usd/call", "errors", "p90 ms")
_STEPS: Final = 20
_NOTABLE, _ALARMING = 0.01, 0.1
_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


@click.command("stats", short_help="Show how modules are used.")
@click.argument("names", nargs=-1, shell_complete=completion.modules)
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="Show the N most used only.")
@click.option("--hours", is_flag=True, help="Draw the last 40 hours, not the last one.")
@console.path_option
@console.json_option
def stats(names: tuple[str, ...], limit: int | None, hours: bool, path: Path | None, as_json: bool) -> None:
    """Show how modules are used: calls, failures, latencies, tokens and cost; the most used first.

    Latencies are of calls that succeeded. A module's tokens and cost include those of the modules it calls. The last
    column draws the number of calls over time, the newest on the right.
    """
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        found = [snapshot.usage(name) for name in names] if names else snapshot.usages()
        lost = snapshot.calls_lost()
    if names:
        found.sort(key=lambda usage: (-usage.calls, usage.name))
    shown = found[:limit]
    if as_json:
        console.print_json_items({"calls_lost": lost}, "usage", map(plain, shown))
    elif shown:
        columns = (*_COLUMNS, "last 40 hours" if hours else "last hour")
        tables.print_table(columns, [(*_row(usage), _drawn(usage, hours)) for usage in shown], spare=_SPARE)
    else:
        console.say("no calls were reported")
    if lost and not as_json:
        console.print_warning(f"{lost:,} calls are not counted: their reporters or the daemon had no room for them")


def plain(usage: ModuleUsage) -> dict[str, Any]:
    """Usage for JSON, with derived values. The counts per period end with the current period."""
    fields = msgspec.structs.asdict(usage)
    del fields["minutes"], fields["hours"]
    return {
        **fields,
        "error_rate": usage.error_rate,
        "cost_usd_per_call": usage.cost_usd_per_call,
        "overall": msgspec.structs.asdict(usage.overall),
        "durations": {size: msgspec.structs.asdict(seen) for size, seen in usage.durations.items()},
        "calls_by_minute": usage.calls_by_minute(),
        "calls_by_hour": usage.calls_by_hour(),
    }


def _row(usage: ModuleUsage) -> tuple[object, ...]:
    rate = usage.error_rate
    cost = usage.cost_usd_per_call
    seen = usage.overall
    return (
        usage.name,
        usage.calls,
        usage.errors,
        None if rate is None else tables.Marked(f"{rate:.1%}", _colour_of(rate)),
        *(_milliseconds(value) if seen.calls else None for value in (seen.p50, seen.p90, seen.p99)),
        usage.tokens_in,
        usage.tokens_out,
        None if cost is None else f"{cost:.6f}",
        console.local_time(usage.last_used) if usage.last_used else None,
    )


def _colour_of(rate: float) -> str:
    """Of a failure rate: a share that an operator should know of, or should look at now."""
    return "red" if rate >= _ALARMING else "yellow" if rate >= _NOTABLE else ""


def _milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or not value else f"{value:.2f}"


def _drawn(usage: ModuleUsage, hours: bool) -> str:
    """Calls over time in twenty steps, of three minutes or of two hours."""
    counts, each = (usage.calls_by_hour()[-2 * _STEPS :], 2) if hours else (usage.calls_by_minute(), 3)
    return sparkline([sum(counts[at : at + each]) for at in range(0, len(counts), each)])


def sparkline(counts: Sequence[int]) -> str:
    """One character for each count, the highest bar for the largest; a point for zero."""
    bars = _BARS if (sys.stdout.encoding or "").lower().startswith("utf") else _PLAIN_BARS
    largest = max(counts, default=0)
    return "".join(bars[(count * len(bars) - 1) // largest] if count else "." for count in counts)
