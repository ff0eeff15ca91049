"""`health`, `health open`, `health reset`, `limits`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.numbers import Whole
from dspy_registry.cli.target import open_client
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.number_text import number

if TYPE_CHECKING:
    from dspy_registry.readers.registry import Registry
    from dspy_registry.registry_store.health_file import HealthEntry

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}
_COLOURS: Final = {"open": "red", "half_open": "yellow"}
_LONGEST_LOOK: Final = 1.0  # seconds: a file that was replaced by hand is found then


class Duration(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases
    """A length of time such as 30s, 10m or 1h; in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds of a text."""
        if isinstance(value, float):
            return value
        text = str(value)
        length = number(text[:-1])
        if text[-1:] not in _UNITS or length is None or length <= 0:
            self.fail(f"{value!r} is not a length of time such as 30s, 10m or 1h.", param, ctx)
        return length * _UNITS[text[-1]]


@click.group("health", invoke_without_command=True, short_help="Which modules are not healthy; open, reset.")
@click.option("--watch", is_flag=True, help="Print it again whenever it changes, until interrupted.")
@console.path_option
@console.json_option
@click.pass_context
def health(context: click.Context, watch: bool, path: Path | None, as_json: bool) -> None:
    """Print the module versions that are not healthy on this host now. Calls go elsewhere until their time is over."""
    if context.invoked_subcommand is not None:
        return
    with open_registry(path) as registry:
        if not watch:
            _show(registry.health(), as_json=as_json, line=False)
            return
        for found in _changes(registry):
            _show(found, as_json=as_json, line=True)


def _changes(registry: Registry) -> Iterator[list[HealthEntry]]:
    """What is not healthy, now and whenever it changes."""
    shown: list[tuple[str | int, ...]] | None = None
    while True:
        file = registry.host_health.file()
        seen = None if file is None else file.futex.value  # before the look: a later change ends the wait
        found = registry.health()
        facts: list[tuple[str | int, ...]] = [
            (entry.name, entry.version, entry.state, entry.openings) for entry in found
        ]
        if facts != shown:
            shown = facts
            yield found
        _wait(registry, seen)


def _wait(registry: Registry, seen: int | None) -> None:
    import time

    from dspy_registry.registry_store.boot_clock import boot_seconds

    now = boot_seconds()
    seconds = min(_LONGEST_LOOK, registry.host_health.known.next_change(now) - now)
    file = registry.host_health.file()
    if file is None or seen is None:
        time.sleep(seconds)
    else:
        file.futex.wait(seen, seconds)


def _show(found: list[HealthEntry], *, as_json: bool, line: bool) -> None:
    if as_json:
        plain = {"unhealthy": [msgspec.structs.asdict(entry) for entry in found]}
        (console.print_json_line if line else console.print_json)(plain)
    elif found:
        tables.print_table(("name", "version", "state", "until", "failures", "last", "openings"), map(_row, found))
    else:
        click.echo("all modules are healthy")


def _row(entry: HealthEntry) -> tuple[object, ...]:
    until = console.local_time(int(entry.until * 1000))
    state = tables.Marked(entry.state, _COLOURS[entry.state])
    return entry.name, entry.version, state, until, entry.failures, entry.last_kind, entry.openings


_version_option = click.option("--version", type=Whole(min=1), metavar="N", help="This version, not the one in force.")


@health.command("open", short_help="Let calls go elsewhere for a while.")
@click.argument("name", shell_complete=completion.modules)
@click.option("--for", "seconds", type=Duration(), required=True, metavar="TIME", help="How long: 30s, 10m, 1h.")
@_version_option
@console.path_option
@console.json_option
def open_circuit(name: str, seconds: float, version: int | None, path: Path | None, as_json: bool) -> None:
    """Open the circuit of module NAME by hand, as for maintenance. Its daemon must run."""
    with open_client(path) as client:
        client.open_circuit(name, seconds, version)
    _say(f"{name} is not called for {seconds:g} s", {"name": name, "version": version, "seconds": seconds}, as_json)


@health.command("reset", short_help="Let calls come again.")
@click.argument("name", shell_complete=completion.modules)
@click.option("--version", type=Whole(min=1), metavar="N", help="Only this version; else all.")
@console.path_option
@console.json_option
def reset_circuit(name: str, version: int | None, path: Path | None, as_json: bool) -> None:
    """Close the circuit of module NAME, and forget the calls that opened it. Its daemon must run."""
    with open_client(path) as client:
        client.reset_circuit(name, version)
    _say(f"{name} counts as healthy", {"name": name, "version": version}, as_json)


def _say(text: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(facts)
    else:
        click.echo(tables.printable(text))


@click.command("limits", short_help="Who holds calls of which limits, and since when.")
@console.path_option
@console.json_option
def limits(path: Path | None, as_json: bool) -> None:
    """Print each call under a limit that is under way on this host: its limit, its process, and for how long."""
    with open_registry(path) as registry:
        found = registry.limited_calls()
    columns = ("limit", "process", "seconds")
    rows = [(holder.limit, holder.pid or "unknown", f"{holder.seconds:.1f}") for holder in found]
    if as_json:
        plain = [{"limit": each.limit, "pid": each.pid, "seconds": each.seconds} for each in found]
        console.print_json({"calls": plain})
    elif rows:
        tables.print_table(columns, rows)
    else:
        click.echo("no call is under a limit")
