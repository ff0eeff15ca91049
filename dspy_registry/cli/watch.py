"""`watch`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import msgspec

from dspy_registry.cli import console
from dspy_registry.cli.numbers import Number, Whole
from dspy_registry.cli.tables import print_text, printable
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.changes import Change, shown_requester
from dspy_registry.registry_store.labels import shown_versions
from dspy_registry.registry_store.records import By


@click.command("watch", short_help="Print changes as they are committed.")
@click.option("--since", type=Whole(min=0), metavar="REVISION", help="Begin after this revision, not now.")
@click.option(
    "--names", multiple=True, metavar="PATTERN", help="Only what concerns such names: 'acme.*'. Repeated: any of them."
)
@click.option("--timeout", type=Number(min=0), metavar="SECONDS", help="Stop after SECONDS without a change.")
@click.option("--count", type=Whole(min=1), metavar="N", help="Stop after N changes.")
@console.path_option
@console.json_option
def watch(
    since: int | None,
    names: tuple[str, ...],
    timeout: float | None,
    count: int | None,
    path: Path | None,
    as_json: bool,
) -> None:
    """Print each change as it is committed, until interrupted; with --json, one object per line."""
    with open_registry(path) as registry:
        changes = registry.watch(since, names=names or None, timeout=timeout)
        for number, change in enumerate(changes, 1):
            _show(change, as_json)
            if number == count:
                return


def _show(change: Change, as_json: bool) -> None:
    if as_json:
        console.print_json_line(_plain(change))
        return
    when = f"{change.revision:>8}  {console.local_time(change.committed_at)}"
    for what in _lines(change):
        print_text(f"{when}  {what}")


def _lines(change: Change) -> Iterator[str]:
    if change.everything:
        yield "older changes are no longer logged: reload everything"
    elif not (change.modules or change.aliases or change.labels or change.policies):
        yield f"aliases or implied capabilities changed{''.join(map(_by, change.by))}"
    for module in change.modules:
        source = f"  {printable(module.source)}" if module.source else ""
        yield f"{module.action:<12}  {module.name}  version {module.version}{source}{_by(module.by)}"
    for alias in change.aliases:
        meaning = f"{alias.old or '-'} -> {alias.new or '-'}"
        yield f"{'alias':<12}  {alias.alias}  {meaning}  {printable(alias.source)}{_by(alias.by)}"
    for label in change.labels:
        meaning = f"{shown_versions(dict(label.old))} -> {shown_versions(dict(label.new))}"
        yield f"{'label':<12}  {label.name}@{label.label}  {meaning}  {printable(label.source)}{_by(label.by)}"
    for name in change.overrides:
        yield f"{'override':<12}  {name}  begins or ends"
    for pattern in change.policies:
        yield f"{'policy':<12}  {printable(pattern)}{''.join(map(_by, change.by))}"


def _by(by: By | None) -> str:
    return f"  by {shown_requester(by)}" if by else ""


def _plain(change: Change) -> dict[str, Any]:
    """The change without its keys and terms, which only caches need."""
    return {
        "revision": change.revision,
        "committed_at": change.committed_at,
        "modules": [msgspec.structs.asdict(module) for module in change.modules],
        "aliases": [msgspec.structs.asdict(alias) for alias in change.aliases],
        "labels": [msgspec.structs.asdict(label) for label in change.labels],
        "policies": change.policies,
        "overrides": change.overrides,
        "by": change.by,
        "everything": change.everything,
    }
