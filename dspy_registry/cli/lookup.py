"""`get`, `list`, `find`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.numbers import Whole
from dspy_registry.cli.waiting import open_registry
from dspy_registry.readers.near_words import near_capabilities
from dspy_registry.readers.snapshot import Snapshot
from dspy_registry.registry_store.buckets import BUCKETS
from dspy_registry.registry_store.changes import shown_requester
from dspy_registry.registry_store.records import StoredModule, to_plain
from dspy_registry.registry_store.vocabulary import LEVELS

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def _filters(command: Decorated) -> Decorated:
    """The conditions of `list` and `find`, and `--names`."""
    names = click.option("--names", is_flag=True, help="Print only the names, one per line.")
    return conditions(names(command))


def conditions(command: Decorated) -> Decorated:
    """Options named as the arguments of `Registry.find`."""
    level = click.Choice(LEVELS)
    for option in reversed(
        (
            click.option(
                "-c",
                "--capability",
                "capabilities",
                multiple=True,
                metavar="WORD",
                help="Has this capability, or one that implies it. Repeated: has all of them.",
                shell_complete=completion.capabilities,
            ),
            click.option(
                "--any-capability",
                "any_capabilities",
                multiple=True,
                metavar="WORD",
                help="Repeated: has at least one of these, directly or implied.",
                shell_complete=completion.capabilities,
            ),
            click.option(
                "--without-capability",
                "without_capabilities",
                multiple=True,
                metavar="WORD",
                help="Has it neither directly nor implied. Repeated: none of them.",
                shell_complete=completion.capabilities,
            ),
            click.option("--category", metavar="WORD", help="Of this category.", shell_complete=completion.categories),
            click.option(
                "--pool", "pool_type", metavar="WORD", help="Run by this pool.", shell_complete=completion.pools
            ),
            click.option("--native/--no-native", default=None, help="Has a native implementation, or has none."),
            click.option("--gpu/--no-gpu", default=None, help="Needs a GPU, or needs none."),
            click.option("--max-memory", type=level, help="Needs at most this much memory."),
            click.option("--max-compute", type=level, help="Needs at most this much compute."),
        )
    ):
        command = option(command)
    return command


@click.command("get", short_help="Show one module.")
@click.argument("name", shell_complete=completion.modules)
@click.option("--explain", is_flag=True, help="Also show which source gave each field.")
@click.option("--key", metavar="KEY", help="The version that a label with weights means for this key.")
@click.option("--at-version", "version", type=Whole(min=1), metavar="N", help="Show this version.")
@console.path_option
@console.json_option
def get(name: str, explain: bool, key: str | None, version: int | None, path: Path | None, as_json: bool) -> None:
    """Show one module: by its full name, an alias, or a short name (predict, Predict).

    NAME@3 is a version, NAME@champion what a label names. `register` takes what --json prints.

    \b
    dspy-registry get acme.Qa@live --key user-17
    """
    if version is not None and (key is not None or explain):
        raise click.UsageError("--at-version goes with neither --key nor --explain.")
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        resolved = snapshot.resolve(f"{name}@{version}" if version else name, key=key)
        stored = snapshot.describe(str(resolved))
        if explain and resolved.version != snapshot.resolve(resolved.name).version:
            raise click.UsageError("--explain is for the version in force: sources are not kept of others.")
        given = snapshot.explain(resolved.name) if explain else None
        shown = _shown(snapshot, stored)
    if as_json:
        console.print_json({**shown, **({} if given is None else {"explained": given})})
    else:
        tables.print_fields(_rows(stored, shown, given))


def plain(stored: StoredModule) -> dict[str, Any]:
    """A module for JSON: its fields, and under `provenance` what the registry recorded about it."""
    kept = stored.provenance
    provenance = {name: getattr(kept, name) for name in ("version", "revision", "updated_at", "source", "by")}
    return {**to_plain(stored.info), "provenance": provenance}


def _shown(snapshot: Snapshot, stored: StoredModule) -> dict[str, Any]:
    """What `plain` gives, with what a snapshot knows beside: implied capabilities, labels, what is overridden."""
    name, version = stored.info.name, stored.provenance.version
    labels = {word: kept.versions for word, kept in snapshot.labels(name).items() if version in kept.versions}
    beside = {
        "implied_capabilities": snapshot.implied_capabilities(f"{name}@{version}"),
        "overrides": snapshot.overridden(f"{name}@{version}"),
        "labels": {word: 100 * versions[version] / BUCKETS for word, versions in labels.items()},
    }
    return {**plain(stored), **beside}


def _rows(stored: StoredModule, beside: dict[str, Any], given: dict[str, str] | None) -> Iterator[tuple[object, ...]]:
    shown = {**to_plain(stored.info), "estimated_duration": f"{stored.info.estimated_duration} ms"}
    for field, value in shown.items():
        keyed = {f"{field}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {field: value}
        for key, item in keyed.items():
            source = () if given is None or key == "name" else (f"({given[key]})",)
            yield (key, item, *source)
        if field == "capabilities" and beside["implied_capabilities"]:
            yield "implied", beside["implied_capabilities"]
    kept = stored.provenance
    yield "version", kept.version
    if beside["labels"]:
        shares = ((word, f" {share:g} %" if share < 100 else "") for word, share in beside["labels"].items())
        yield "labels", [word + share for word, share in shares]
    yield "revision", kept.revision
    yield "source", _source(kept.source, beside["overrides"])
    yield "by", shown_requester(kept.by)
    yield "updated", console.local_time(kept.updated_at)


@click.command("list", short_help="List modules, in registration order.")
@_filters
@console.path_option
@console.json_option
def list_modules(names: bool, path: Path | None, as_json: bool, **conditions: Any) -> None:
    """List modules, in registration order: all, or those that meet every condition.

    Exits with 0 when no module meets them; `find` exits with 1.
    """
    _show_found(path, conditions, names, as_json)


@click.command("find", short_help="Find modules by what they can do and need.")
@_filters
@console.path_option
@console.json_option
def find(names: bool, path: Path | None, as_json: bool, **conditions: Any) -> int:
    """Find the modules that meet every condition, in registration order.

    \b
    dspy-registry find --capability reasoning --capability tool_use --max-memory medium
    dspy-registry find --pool neural --no-gpu --names

    Exits with 1 when no module meets them.
    """
    if all(condition in (None, ()) for condition in conditions.values()):
        raise click.UsageError("Give at least one condition; `list` shows all modules.", click.get_current_context())
    return 0 if _show_found(path, conditions, names, as_json) else 1


def _show_found(path: Path | None, conditions: dict[str, Any], names_only: bool, as_json: bool) -> int:
    """Print the modules that meet the conditions; their number."""
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        found = snapshot.find(**conditions)
        modules = (_shown(snapshot, snapshot.describe(name)) for name in found)
        hints = [] if found or as_json else _hints(snapshot, _wanted(conditions))
        if as_json:
            items: Iterable[Any] = found if names_only else modules
            console.print_json_items({"revision": snapshot.revision}, "modules", items)
        elif names_only:
            for name in found:
                click.echo(name)
        elif found:
            columns = (*tables.MODULE_COLUMNS, "source")
            spare = ("source", *tables.SPARE_MODULE_COLUMNS)
            tables.print_table(columns, (_row(snapshot, name) for name in found), spare=spare)
        else:
            console.say("no module meets these conditions")
    for hint in hints:
        console.say(hint)
    return len(found)


def _hints(snapshot: Snapshot, capabilities: Iterable[str]) -> list[str]:
    """For each wanted capability that no module has: the nearest ones that some module has."""
    return near_capabilities(capabilities, partial(snapshot.words, "capability"))


def _wanted(conditions: dict[str, Any]) -> Iterable[str]:
    return (*conditions["capabilities"], *conditions["any_capabilities"])


def _row(snapshot: Snapshot, name: str) -> tuple[object, ...]:
    """A row of the table. A capability that others only imply is in brackets."""
    stored = snapshot.describe(name)
    implied = (f"({word})" for word in snapshot.implied_capabilities(name))
    row = tables.module_row(stored.info, (*stored.info.capabilities, *implied))
    return (*row, _source(stored.provenance.source, snapshot.overridden(name)))


def _source(source: str, overridden: Sequence[str]) -> object:
    """What declared it, in a colour when that hides what others declare."""
    return tables.Marked(" over ".join((source, *overridden)), "yellow") if overridden else source
