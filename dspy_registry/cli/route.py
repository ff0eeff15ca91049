"""`route`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.waiting import open_registry
from dspy_registry.readers.observed import BASES, DECLARED


@click.command("route", short_help="Recommend how to route a call.")
@click.argument("name", shell_complete=completion.modules)
@click.option("--input-size", type=click.IntRange(min=0), metavar="N", help="Length of the input, in characters.")
@click.option("--optimize-latency", is_flag=True, help="Prefer a native implementation where there is one.")
@click.option(
    "--basis",
    type=click.Choice(BASES),
    default=DECLARED,
    show_default=True,
    help="Take durations from declarations or from measured calls.",
)
@console.path_option
@console.json_option
def route(
    name: str, input_size: int | None, optimize_latency: bool, basis: str, path: Path | None, as_json: bool
) -> None:
    """Recommend pool, timeout and cost of one call of a module.

    \b
    dspy-registry route dspy.ColBERTv2 --input-size 5000
    """
    with open_registry(path) as registry:
        module = registry.get_module(name)
        recommended = registry.routing_recommendation(
            name, input_size=input_size, optimize_latency=optimize_latency, basis=basis
        )
    fields = {"name": module.name, **msgspec.structs.asdict(recommended)}
    if as_json:
        console.print_json(fields)
        return
    units = {"timeout": " ms", "estimated_cost": " compute-seconds"}
    tables.print_fields(
        (field, f"{_rounded(value)}{units[field]}" if field in units else _rounded(value))
        for field, value in fields.items()
        if value is not None
    )


def _rounded(value: Any) -> Any:
    """A number to four significant digits: no estimate is more exact."""
    return float(f"{value:.4g}") if isinstance(value, float) else value
