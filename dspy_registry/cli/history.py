"""`history`, `diff`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.lookup import plain
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.changes import shown_requester
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.history import Versions, changed_between
from dspy_registry.registry_store.labels import Label
from dspy_registry.registry_store.records import StoredModule

_COLUMNS: Final = ("version", "revision", "updated", "source", "by", "changed")
_SPARE: Final = ("revision", "by", "source")


class _Row(NamedTuple):
    """One version. `stored` is None for a damaged record, `changed` when the version before is not kept."""

    version: int
    stored: StoredModule | None
    changed: dict[str, tuple[Any, Any]] | None
    damage: str


@click.command("history", short_help="Show the versions kept of one module.")
@click.argument("name", shell_complete=completion.kept_modules)
@click.option("--values", is_flag=True, help="Also show the old and the new value of each field that changed.")
@console.path_option
@console.json_option
def history(name: str, values: bool, path: Path | None, as_json: bool) -> int:
    """Show the versions kept of one module, newest first: who made each, when, from where, and what changed.

    Kept are the one in force, the last 16 that it replaced, and those that labels name. NAME is a full name, an alias
    or a short name; for a module that is no longer registered, only its full name. Exits with 1 when no version is
    kept, or a version is damaged.
    """
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        versions = snapshot.versions(name)
        labels = snapshot.labels(versions.name) if versions.in_force else {}
    rows = list(_rows(versions))
    if as_json:
        head = {"name": versions.name, "registered": bool(versions.in_force)}
        percents = {word: kept.percents for word, kept in labels.items()}
        console.print_json_items({**head, "labels": percents}, "versions", map(_plain, rows))
    else:
        _print(rows, labels)
        for row in rows if values else ():
            _print_values(f"version {row.version}", row.changed or {})
        if not versions.in_force:
            console.say(f"{versions.name} is not registered any more")
        for row in rows:
            if row.damage:
                console.print_warning(row.damage)
    return 1 if any(row.damage for row in rows) else 0


def _print(rows: list[_Row], labels: dict[str, Label]) -> None:
    """The table. A module without labels has no column for them."""
    if not labels:
        tables.print_table(_COLUMNS, map(_cells, rows), spare=_SPARE)
        return
    named_by = [tuple(word for word, kept in labels.items() if row.version in kept.versions) for row in rows]
    cells = ((version, words, *rest) for words, (version, *rest) in zip(named_by, map(_cells, rows), strict=True))
    tables.print_table((_COLUMNS[0], "labels", *_COLUMNS[1:]), cells, spare=_SPARE)


def _rows(versions: Versions) -> Iterator[_Row]:
    """Each version beside the one before it."""
    later: _Row | None = None
    for kept in versions.kept:
        try:
            row = _Row(kept.version, kept.load(), None, "")
        except CorruptRecordError as error:
            row = _Row(kept.version, None, None, error.message)
        if later is not None:
            yield _compared(row, later)
        later = row
    if later is not None:
        yield later


def _compared(before: _Row, after: _Row) -> _Row:
    if before.stored is None or after.stored is None or before.version != after.version - 1:
        return after
    return after._replace(changed=changed_between(before.stored, after.stored))


def _cells(row: _Row) -> tuple[object, ...]:
    if row.stored is None:
        return row.version, None, None, None, None, tables.Marked("damaged", "red")
    kept = row.stored.provenance
    when, by = console.local_time(kept.updated_at), shown_requester(kept.by)
    return kept.version, kept.revision, when, kept.source, by, None if row.changed is None else tuple(row.changed)


def _plain(row: _Row) -> dict[str, Any]:
    if row.stored is None:
        return {"provenance": {"version": row.version}, "damaged": row.damage}
    if row.changed is None:
        return {**plain(row.stored), "changed": None, "changes": None}
    return {**plain(row.stored), "changed": list(row.changed), "changes": _old_and_new(row.changed)}


def _old_and_new(changed: dict[str, tuple[Any, Any]]) -> dict[str, dict[str, Any]]:
    return {field: {"old": old, "new": new} for field, (old, new) in changed.items()}


def _print_values(title: str, changed: dict[str, tuple[Any, Any]]) -> None:
    if changed:
        tables.print_text(f"\n{title}")
        rows = ((field, _shown(old), _shown(new)) for field, (old, new) in changed.items())
        tables.print_table(("field", "old", "new"), rows)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


@click.command("diff", short_help="Show what differs between two versions.")
@click.argument("name", shell_complete=completion.modules)
@click.argument("old", metavar="VERSION|LABEL")
@click.argument("new", metavar="VERSION|LABEL")
@console.path_option
@console.json_option
def diff(name: str, old: str, new: str, path: Path | None, as_json: bool) -> None:
    """Show the fields in which two versions of a module differ, with the old and the new value of each.

    `latest` is the version in force.

    \b
    dspy-registry diff acme.Qa 2 3
    dspy-registry diff acme.Qa champion latest
    """
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        before, after = snapshot.describe(f"{name}@{old}"), snapshot.describe(f"{name}@{new}")
    changed = changed_between(before, after)
    numbers = before.provenance.version, after.provenance.version
    if as_json:
        facts = {"name": after.info.name, "old_version": numbers[0], "new_version": numbers[1]}
        console.print_json({**facts, "changes": _old_and_new(changed)})
    elif changed:
        rows = ((field, _shown(was), _shown(now)) for field, (was, now) in changed.items())
        tables.print_table(("field", *(f"version {number}" for number in numbers)), rows)
    else:
        console.say(f"versions {numbers[0]} and {numbers[1]} of {after.info.name} are equal")
