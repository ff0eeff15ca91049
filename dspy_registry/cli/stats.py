"""`stats`: show, which the word may be left out of, and reset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from msgspec.structs import astuple

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.numbers import Whole
from dspy_registry.cli.target import embedded_option, open_writer
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.advice import Standing
from dspy_registry.registry_store.number_text import whole_number
from dspy_registry.registry_store.outcome_kinds import KINDS
from dspy_registry.registry_store.selection import split
from dspy_registry.registry_store.usage import SIZES, ModuleUsage, VersionUsage

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
    "failed by",
    "last used",
)
_SPARE: Final = ("last used", "tokens out", "tokens in", "usd/call", "failed by", "errors", "p90 ms")
_STEPS: Final = 20
_NOTABLE, _ALARMING = 0.01, 0.1
_BARS, _PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


class _ShownByDefault(click.Group):
    """What does not begin with a subcommand is for `show`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with `show` put before what names no subcommand."""
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["show", *args])


@click.group("stats", cls=_ShownByDefault, short_help="Show how modules are used, or forget it.")
def stats() -> None:
    """How modules are used."""


@stats.command("show", short_help="Show how modules are used.")
@click.argument("names", nargs=-1, shell_complete=completion.modules)
@click.option("-n", "--limit", type=Whole(min=1), metavar="N", help="Show the N most used only.")
@click.option("--hours", is_flag=True, help="Draw the last 40 hours, not the last one.")
@click.option("--version", metavar="N", help="Show what advice on version N, or on the version of a label, is made of.")
@console.path_option
@console.json_option
def show(
    names: tuple[str, ...], limit: int | None, hours: bool, version: str | None, path: Path | None, as_json: bool
) -> None:
    """Show how modules are used: calls, failures, latencies, tokens and cost; the most used first.

    Latencies are of calls that succeeded. A module's tokens and cost include those of the modules it calls. The last
    column draws the number of calls over time, the newest on the right.

    `stats reset NAME` forgets the statistics of a module. With --version, NAME is one module; NAME@N is as with it.
    """
    if version is None and len(names) == 1 and "@" in names[0]:
        found_name, version = split(names[0])
        names = (found_name,)
    if version is not None:
        if len(names) != 1:
            raise click.UsageError("--version needs one module's name.")
        show_version(names[0], version, path, as_json)
        return
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


def show_version(name: str, selector: str, path: Path | None, as_json: bool) -> None:
    """Print what calls of one version have shown, by size of input."""
    with open_registry(path) as registry:
        version = whole_number(selector)
        if version is None:
            version = registry.resolve(f"{name}@{selector}").version
        usage = registry.usage(name, version)
    if as_json:
        console.print_json(plain_version(usage))
        return
    last_used = console.local_time(usage.last_used) if usage.last_used else "never"
    fields = {"name": usage.name, "version": version, "calls": usage.calls, "errors": usage.errors}
    tables.print_fields({**fields, "failed by": _kinds(usage) or "-", "last used": last_used}.items())
    if usage.standing:
        columns = ("input", "completed", "p50 ms", "p90 ms", "p99 ms", "longest ms", "backoff ms")
        rows = [(size, kept.completed, *map(_milliseconds, astuple(kept)[1:])) for size, kept in _by_size(usage)]
        tables.print_table(columns, rows)


@stats.command("reset", short_help="Forget the statistics of a module.")
@click.argument("name", shell_complete=completion.modules)
@click.option("--version", type=Whole(min=1), metavar="N", help="Forget those of version N only.")
@embedded_option
@console.path_option
@console.json_option
def reset(name: str, version: int | None, embedded: bool, path: Path | None, as_json: bool) -> None:
    """Forget the statistics of a module: its totals, and what advice on all its versions is made of.

    Processes that call the module keep what they saw last, and act on that until calls complete.
    """
    with open_writer(path, embedded) as writer:
        writer.reset_usage(name, version)
    if as_json:
        console.print_json({"name": name, "version": version})
    else:
        click.echo(f"{name}{'' if version is None else f', version {version},'} begins again without statistics")


def plain(usage: ModuleUsage) -> dict[str, Any]:
    """Usage for JSON, with derived values. The counts per period end with the current period."""
    fields = msgspec.structs.asdict(usage)
    for kept in ("minutes", "hours", "kinds", "failed_minutes", "failed_hours"):
        del fields[kept]
    return {
        **fields,
        "error_rate": usage.error_rate,
        "cost_usd_per_call": usage.cost_usd_per_call,
        "overall": msgspec.structs.asdict(usage.overall),
        "durations": {size: msgspec.structs.asdict(seen) for size, seen in usage.durations.items()},
        "calls_by_kind": dict(zip(KINDS, usage.kinds, strict=False)),
        "calls_by_minute": usage.calls_by_minute(),
        "calls_by_hour": usage.calls_by_hour(),
        "errors_by_minute": usage.errors_by_minute(),
        "errors_by_hour": usage.errors_by_hour(),
    }


def plain_version(usage: VersionUsage) -> dict[str, Any]:
    """Usage of a version for JSON, with derived values. The counts per minute end with the current one."""
    fields = msgspec.structs.asdict(usage)
    for kept in ("kinds", "evaluated", "failed"):
        del fields[kept]
    return {
        **fields,
        "error_rate": usage.error_rate,
        "cost_usd_per_call": usage.cost_usd_per_call,
        "standing": {size: msgspec.structs.asdict(kept) for size, kept in _by_size(usage)},
        "calls_by_kind": dict(zip(KINDS, usage.kinds, strict=False)),
        "evaluated_by_minute": usage.evaluated_by_minute(),
        "errors_by_minute": usage.errors_by_minute(),
    }


def _by_size(usage: VersionUsage) -> list[tuple[str, Standing]]:
    return [(size, usage.standing[size]) for size in SIZES if size in usage.standing]


def _kinds(usage: ModuleUsage | VersionUsage) -> str:
    """How many calls failed in which way, most first; "": none, or not known."""
    kinds = sorted(usage.errors_by_kind.items(), key=lambda each: -each[1])
    return ", ".join(f"{kind} {count:,}" for kind, count in kinds)


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
        _kinds(usage) or None,
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
