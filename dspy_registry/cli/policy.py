"""`policy`: list, set, remove."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from dspy_registry.cli import console, tables
from dspy_registry.cli.numbers import Number, Whole
from dspy_registry.cli.target import embedded_option, open_writer
from dspy_registry.cli.waiting import open_registry

if TYPE_CHECKING:
    from dspy_registry.registry_store.policy import Policy

_COUNTS = ("max_concurrency", "window_calls", "minimum_failures", "closing_calls")
_NUMBERS = (
    "max_timeout",
    "failure_share",
    "window_seconds",
    "open_seconds",
    "longest_open_seconds",
    "healthy_seconds",
)


@click.group("policy", invoke_without_command=True, short_help="Limits and circuits of modules: list, set, remove.")
@click.pass_context
def policy(context: click.Context) -> None:
    """Policies: how many calls at once, how long, and when a circuit opens."""
    if context.invoked_subcommand is None:
        raise click.UsageError("Say what to do: list, set or remove.", context)


@policy.command("list", short_help="Print all policies.")
@console.path_option
@console.json_option
def list_policies(path: Path | None, as_json: bool) -> None:
    """Print every policy, the source that declared it, and what it sets."""
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        found = sorted(snapshot.policies().items(), key=lambda row: (row[0][1], row[0][0]))
    if as_json:
        plain = [{"pattern": pattern, "source": source, **_set(declared)} for (source, pattern), declared in found]
        console.print_json({"policies": plain})
    elif found:
        rows = [(pattern, source, _shown(declared)) for (source, pattern), declared in found]
        tables.print_table(("pattern", "source", "sets"), rows)
    else:
        console.say("no policies are declared")


def _set(declared: Policy) -> dict[str, Any]:
    return {field: value for field, value in msgspec.structs.asdict(declared).items() if value is not None}


def _shown(declared: Policy) -> str:
    return ", ".join(f"{field} {value:g}" for field, value in _set(declared).items())


def _field_options(command: Any) -> Any:
    """An option for each field of a policy."""
    for field in reversed((*_COUNTS, *_NUMBERS)):
        kind, metavar = (Whole(), "N") if field in _COUNTS else (Number(), "X")
        command = click.option(f"--{field.replace('_', '-')}", field, type=kind, metavar=metavar)(command)
    return command


@policy.command("set", short_help="Decide about modules of a name, a pattern or a pool.")
@click.argument("pattern")
@_field_options
@embedded_option
@console.path_option
@console.json_option
def set_policy(pattern: str, embedded: bool, path: Path | None, as_json: bool, **fields: Any) -> None:
    """Set the policy of PATTERN: a full name, a shell pattern such as 'acme.*', or pool:NAME.

    It replaces an earlier policy of this pattern as a whole. Times are seconds. docs/health.md explains each field.
    """
    from dspy_registry.registry_store.policy import Policy

    with open_writer(path, embedded) as writer:
        revision = writer.set_policy(pattern, Policy(**fields))
    console.print_done(f"the policy of {pattern} is set", {"revision": revision}, as_json=as_json)


@policy.command("remove", short_help="Remove a policy.")
@click.argument("pattern")
@embedded_option
@console.path_option
@console.json_option
def remove_policy(pattern: str, embedded: bool, path: Path | None, as_json: bool) -> None:
    """Remove the policy of PATTERN that was set by hand. What a manifest declares of it counts again."""
    with open_writer(path, embedded) as writer:
        revision = writer.remove_policy(pattern)
    console.print_done(f"{pattern} has no policy that was set by hand", {"revision": revision}, as_json=as_json)
