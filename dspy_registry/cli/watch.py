"""`watch`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from dspy_registry.cli import console
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.changes import Change


@click.command("watch", short_help="Print changes as they are committed.")
@click.option("--since", type=click.IntRange(min=0), metavar="REVISION", help="Begin after this revision, not now.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="Stop after SECONDS without a change.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N changes.")
@console.path_option
@console.json_option
def watch(since: int | None, timeout: float | None, count: int | None, path: Path | None, as_json: bool) -> None:
    """Print each change as it is committed, until interrupted; with --json, one object per line."""
    with open_registry(path) as registry:
        changes = registry.watch(since, timeout=timeout)
        for number, change in enumerate(changes, 1):
            _show(change, as_json)
            if number == count:
                return


def _show(change: Change, as_json: bool) -> None:
    if as_json:
        console.print_json_line(_plain(change))
        return
    when = f"{change.revision:>8}  {console.local_time(change.committed_at)}"
    if change.everything:
        click.echo(f"{when}  older changes are no longer logged: reload everything")
    elif not change.modules:
        click.echo(f"{when}  aliases or implied capabilities changed")
    for module in change.modules:
        click.echo(f"{when}  {module.action:<12}  {module.name}  version {module.version}")


def _plain(change: Change) -> dict[str, Any]:
    """The change without its keys and terms, which only caches need."""
    return {
        "revision": change.revision,
        "committed_at": change.committed_at,
        "modules": [msgspec.structs.asdict(module) for module in change.modules],
        "everything": change.everything,
    }
