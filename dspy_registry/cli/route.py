"""`route`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from dspy_registry.cli import completion, console, lookup, tables
from dspy_registry.cli.numbers import Number, Whole
from dspy_registry.cli.waiting import open_registry
from dspy_registry.readers.observed import AUTO, BASES, DECLARED
from dspy_registry.readers.ranking import PREFERENCES
from dspy_registry.readers.registry import Registry
from dspy_registry.readers.route import Route
from dspy_registry.readers.route_explained import UNITS


@click.command("route", short_help="Say which module to call, or how to route a call.")
@click.argument("names", nargs=-1, metavar="[NAME]...", shell_complete=completion.modules)
@lookup.conditions
@click.option("--label", metavar="LABEL", help="The label for all names without one.", shell_complete=completion.labels)
@click.option("--key", metavar="KEY", help="The versions that labels with weights mean for this key.")
@click.option("--input-size", type=Whole(min=0), metavar="N", help="Length of the input, in characters.")
@click.option("--prefer", type=click.Choice(PREFERENCES), help="What decides among modules.  [default: balanced]")
@click.option("--deadline", type=Number(min=0), metavar="MS", help="Milliseconds that the call may take.")
@click.option("--max-cost", type=Number(min=0), metavar="USD", help="US dollars that the call may cost.")
@click.option("--exclude", multiple=True, metavar="NAME", help="Not this module.", shell_complete=completion.modules)
@click.option("--explain", is_flag=True, help="Show each number, where it comes from, and what was left out.")
@click.option("--optimize-latency", is_flag=True, help="Of one module: prefer a native implementation if it has one.")
@click.option(
    "--basis",
    type=click.Choice(BASES),
    help="Take durations from declarations or from measured calls.  [default: declared for one module, else auto]",
)
@console.path_option
@console.json_option
def route(
    names: tuple[str, ...],
    label: str | None,
    key: str | None,
    input_size: int | None,
    prefer: str | None,
    deadline: float | None,
    max_cost: float | None,
    exclude: tuple[str, ...],
    explain: bool,
    optimize_latency: bool,
    basis: str | None,
    path: Path | None,
    as_json: bool,
    **conditions: Any,
) -> None:
    """Say which of several modules to call. With one name alone: pool, timeout and cost of a call of that module.

    \b
    dspy-registry route dspy.ColBERTv2 --input-size 5000
    dspy-registry route --capability reasoning --deadline 8000 --explain
    dspy-registry route dspy.Predict dspy.ReAct --prefer latency
    """
    choosing = (label, key, prefer, deadline, max_cost, *conditions.values())
    chooses = len(names) != 1 or explain or exclude or any(each not in (None, ()) for each in choosing)
    if not chooses:
        _recommend(names[0], input_size, optimize_latency, basis or DECLARED, path, as_json)
        return
    context = click.get_current_context()
    if optimize_latency:
        raise click.UsageError("--optimize-latency is for one name alone.", context)
    if not names and all(each in (None, ()) for each in conditions.values()):
        raise click.UsageError("Give a name or a condition, such as --capability WORD.", context)
    with open_registry(path) as registry:
        found = registry.route(
            **conditions,
            names=names or None,
            input_size=input_size,
            prefer=prefer or "balanced",
            deadline_ms=deadline,
            max_cost_usd=max_cost,
            exclude=exclude,
            basis=basis or AUTO,
            label=label,
            key=key,
        )
        _show(found, explain, as_json)


def _show(route: Route, explain: bool, as_json: bool) -> None:
    if as_json:
        console.print_json({**_plain(route), **({"explained": route.explain()} if explain else {})})
        return
    if explain:
        tables.print_text(route.explain())
        return
    unit = UNITS[route.alternatives[0].cost_unit]
    columns = ("module", "version", "score", "expected ms", f"cost in {unit}", "failures", "timeout ms")
    rows = (
        (
            each.name + (" (probe)" if each.is_probe else ""),
            each.version,
            _rounded(each.score),
            round(each.expected_ms),
            _rounded(each.cost),
            f"{each.failure_rate:.1%}",
            each.recommendation.timeout,
        )
        for each in route.alternatives
    )
    tables.print_table(columns, rows)
    if route.degraded:
        console.say("degraded: every circuit is open; this one ends first")
    for left_out in route.excluded:
        console.say(f"left out: {left_out.name} ({left_out.reason}): {left_out.detail}")


def _plain(route: Route) -> dict[str, Any]:
    """A route for JSON."""
    fields = ("name", "version", "degraded", "revision", "usage_word", "health_word")
    numbers = ("name", "version", "score", "expected_ms", "cost", "cost_unit", "failure_rate", "is_probe")
    return {
        **{field: getattr(route, field) for field in fields},
        "recommendation": msgspec.structs.asdict(route.recommendation),
        "alternatives": [
            {
                **{number: getattr(each, number) for number in numbers},
                "recommendation": msgspec.structs.asdict(each.recommendation),
            }
            for each in route.alternatives
        ],
        "excluded": [each._asdict() for each in route.excluded],
    }


def _recommend(
    name: str, input_size: int | None, optimize_latency: bool, basis: str, path: Path | None, as_json: bool
) -> None:
    with open_registry(path) as registry:
        fields = _recommendation(registry, name, input_size, optimize_latency, basis)
    if as_json:
        console.print_json(fields)
        return
    units = {"timeout": " ms", "estimated_cost": " compute-seconds"}
    tables.print_fields(
        (field, f"{_rounded(value)}{units[field]}" if field in units else _rounded(value))
        for field, value in fields.items()
        if value is not None
    )


def _recommendation(
    registry: Registry, name: str, input_size: int | None, optimize_latency: bool, basis: str
) -> dict[str, Any]:
    module = registry.get_module(name)
    recommended = registry.routing_recommendation(
        module.name, input_size=input_size, optimize_latency=optimize_latency, basis=basis
    )
    return {"name": module.name, **msgspec.structs.asdict(recommended)}


def _rounded(value: Any) -> Any:
    """A number to four significant digits: no estimate is more exact."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
