"""`rollout`, `rollout status`, `rollout pause`, `rollout resume`, `rollout abort`."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import click

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.health import Duration
from dspy_registry.cli.numbers import Whole
from dspy_registry.cli.target import open_client
from dspy_registry.registry_store.number_text import number
from dspy_registry.registry_store.rollout import Plan

_COLOURS = {"returned": "red", "aborted": "yellow", "overtaken": "yellow", "paused": "yellow"}
_BEGIN = "start"
_LISTING = "status"
_LISTINGS = ("list", "ls", "show")  # what other groups call it

_label_option = click.option(
    "--label", required=True, metavar="WORD", help="The label.", shell_complete=completion.labels
)


class Percent(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases
    """A percentage such as 2% or 2; as a share, 0.02."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The share of a text."""
        if isinstance(value, float):
            return value
        found = number(str(value).removesuffix("%"))
        if found is None:
            self.fail(f"{value!r} is not a percentage such as 2%.", param, ctx)
        return found / 100


class Steps(click.ParamType):  # type: ignore[type-arg]
    """Percentages with commas between them."""

    name = "steps"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """The percentages of a text."""
        if isinstance(value, tuple):
            return value
        found = [number(part.removesuffix("%")) for part in str(value).split(",")]
        if None in found:
            self.fail(f"{value!r} is not a row of percentages such as 1,10,50,100.", param, ctx)
        return tuple(part for part in found if part is not None)


class _Group(click.Group):
    """`rollout NAME VERSION` is `rollout start NAME VERSION`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            if not ctx.resilient_parsing:
                self._refuse_what_is_no_start(ctx, args)
            args = [_BEGIN, *args]
        return super().parse_args(ctx, args)

    def _refuse_what_is_no_start(self, ctx: click.Context, args: list[str]) -> None:
        """A word without a version may be meant as a command."""
        if any(map(str.isdecimal, args[1:])):
            return
        near = [_LISTING] if args[0] in _LISTINGS else difflib.get_close_matches(args[0], self.commands)
        if near:
            ctx.fail(f"No such command '{args[0]}'. Did you mean {' or '.join(near)}?")


@click.group("rollout", cls=_Group, short_help="Move a label to a new version in guarded steps.")
def rollout() -> None:
    """Move a label to a new version step by step. The daemon returns it by itself when the version is worse.

    \b
    dspy-registry rollout acme.Qa 4 --label live --steps 1,10,50,100 --every 10m
    dspy-registry rollout status
    dspy-registry rollout abort acme.Qa --label live
    """


@rollout.command(_BEGIN, short_help="Begin a rollout; the word may be left out.")
@click.argument("name", shell_complete=completion.modules)
@click.argument("version", type=Whole(min=1))
@_label_option
@click.option("--steps", type=Steps(), default="1,10,50,100", show_default=True, metavar="PERCENTS")
@click.option("--every", type=Duration(), default="10m", show_default=True, metavar="TIME", help="Length of a step.")
@click.option(
    "--max-error-increase",
    "errors",
    type=Percent(),
    default="2%",
    show_default=True,
    help="Percentage points by which the share of failures may rise.",
)
@click.option(
    "--max-p95-increase",
    "p95",
    type=Percent(),
    default="20%",
    show_default=True,
    help="By how much of itself the 95th percentile of durations may rise.",
)
@console.path_option
@console.json_option
def start(
    name: str,
    version: int,
    label: str,
    steps: tuple[float, ...],
    every: float,
    errors: float,
    p95: float,
    path: Path | None,
    as_json: bool,
) -> None:
    """Move LABEL of the module NAME, by its full name, to VERSION in steps. Its daemon must run.

    The label must name one version now. docs/rollouts.md says when the daemon returns to it.
    """
    with open_client(path) as client:
        revision = client.start_rollout(name, version, label=label, plan=Plan(steps, every, errors, p95))
    told = f"{name}@{label} gives version {version} {steps[0]:g} % of the calls"
    console.print_done(told, {"revision": revision}, as_json=as_json)


@rollout.command("status", short_help="Print the rollouts, also those that have ended.")
@click.argument("names", metavar="[NAME]...", nargs=-1, shell_complete=completion.modules)
@console.path_option
@console.json_option
def status(names: tuple[str, ...], path: Path | None, as_json: bool) -> None:
    """Print all rollouts, or those of the modules named by their full names. Its daemon must run."""
    with open_client(path) as client:
        section = client.status().sections.get("rollouts", {})
    found = [each for each in section.get("rollouts", []) if not names or each["name"] in names]
    error = section.get("error", "")
    if as_json:
        console.print_json({"rollouts": found, "error": error})
        return
    if error:
        console.print_warning(error)
    if found:
        columns = ("label", "state", "from", "to", "percent", "failed", "slow", "began", "reason")
        tables.print_table(columns, map(_row, found))
    else:
        console.say("there is no rollout")


def _row(facts: dict[str, Any]) -> tuple[object, ...]:
    state = tables.Marked(facts["state"], _COLOURS.get(facts["state"], "green"))
    errors, slow = (_shares(facts[field]) for field in ("errors", "slow"))
    label = f"{facts['name']}@{facts['label']}"
    began = console.local_time(facts["started_at"])
    return label, state, facts["old"], facts["new"], f"{facts['percent']:g}", errors, slow, began, facts["reason"]


def _shares(total: dict[str, int]) -> str:
    """Of the old and of the new version: 3 of 200, 9 of 190."""
    return ", ".join(f"{total[f'{which}_hits']} of {total[f'{which}_calls']}" for which in ("old", "new"))


def _steering(action: str, told: str, help: str) -> None:
    @rollout.command(action, short_help=help, help=help)
    @click.argument("name", shell_complete=completion.modules)
    @_label_option
    @console.path_option
    @console.json_option
    def command(name: str, label: str, path: Path | None, as_json: bool) -> None:
        with open_client(path) as client:
            revision = client.steer_rollout(name, action, label=label)
        console.print_done(f"the rollout of {name}@{label} {told}", {"revision": revision}, as_json=as_json)


_steering("pause", "stays at its step", "Stay at the present step. It still returns when the version is worse.")
_steering("resume", "goes on", "Go on with a paused rollout. Its step takes its whole time from now.")
_steering("abort", "has ended", "End a rollout: the label names the old version again.")
