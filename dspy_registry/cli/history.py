"""`history`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.lookup import plain
from dspy_registry.cli.waiting import open_registry
from dspy_registry.registry_store.changes import shown_requester
from dspy_registry.registry_store.errors import CorruptRecordError
from dspy_registry.registry_store.history import Versions, changed_fields
from dspy_registry.registry_store.records import StoredModule

_COLUMNS: Final = ("version", "revision", "updated", "source", "by", "changed")
_SPARE: Final = ("revision", "by", "source")


class _Row(NamedTuple):
    """One version. `stored` is None for a damaged record, `changed` when there is no version before to compare with."""

    version: int
    stored: StoredModule | None
    changed: tuple[str, ...] | None
    damage: str


@click.command("history", short_help="Show the versions kept of one module.")
@click.argument("name", shell_complete=completion.kept_modules)
@console.path_option
@console.json_option
def history(name: str, path: Path | None, as_json: bool) -> int:
    """Show the versions kept of one module, newest first: the one in force, and the last 16 that it replaced.

    NAME is a full name, an alias or a short name; for a module that is no longer registered, only its full name.
    Exits with 1 when no version is kept, or a version is damaged.
    """
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        versions = snapshot.versions(name)
    rows = list(_rows(versions))
    if as_json:
        head = {"name": versions.name, "registered": bool(versions.in_force)}
        console.print_json_items(head, "versions", map(_plain, rows))
    else:
        tables.print_table(_COLUMNS, map(_cells, rows), spare=_SPARE)
        if not versions.in_force:
            console.say(f"{versions.name} is not registered any more")
        for row in rows:
            if row.damage:
                console.print_warning(row.damage)
    return 1 if any(row.damage for row in rows) else 0


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
    if before.stored is None or after.stored is None:
        return after
    return after._replace(changed=changed_fields(before.stored.info, after.stored.info))


def _cells(row: _Row) -> tuple[object, ...]:
    if row.stored is None:
        return row.version, None, None, None, None, tables.Marked("damaged", "red")
    kept = row.stored.provenance
    when, by = console.local_time(kept.updated_at), shown_requester(kept.by)
    return kept.version, kept.revision, when, kept.source, by, row.changed


def _plain(row: _Row) -> dict[str, Any]:
    if row.stored is None:
        return {"provenance": {"version": row.version}, "damaged": row.damage}
    return {**plain(row.stored), "changed": row.changed}
