"""Tables and fields for people. Stored text cannot send control characters to the terminal.

Off a terminal a table is aligned text, never cut, so that `grep` and `awk` can use it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import click
import msgspec

from dspy_registry.cli.drawing import Cell, Column, drawn, least_width
from dspy_registry.registry_store.records import ModuleInfo

_ROWS_WORTH_DRAWING: Final = 2_000

MODULE_COLUMNS: Final = ("name", "category", "capabilities", "needs", "pool", "ms", "native")
SPARE_MODULE_COLUMNS: Final = ("native", "needs")


def module_row(info: ModuleInfo, capabilities: tuple[str, ...] | None = None) -> tuple[object, ...]:
    """A module under MODULE_COLUMNS. `capabilities` are those to show, None: the module's."""
    needs = info.requirements
    return (
        info.name,
        info.category,
        info.capabilities if capabilities is None else capabilities,
        f"{needs.memory}/{needs.compute}{'/gpu' if needs.gpu else ''}",
        info.pool_type,
        info.estimated_duration,
        info.native_available,
    )


class Marked(NamedTuple):
    """A cell that a terminal shows in a colour."""

    value: object
    colour: str


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()) -> None:
    """A table: drawn on a terminal, else aligned text under one line of headings.

    On a terminal that is too narrow, `spare` columns are left out, the first one first. If that is not enough, the
    first cell of each row stands on a separate line above the others.
    """
    cells = [[_cell(cell) for cell in row] for row in rows]
    table = [Column(heading, list(column)) for heading, *column in zip(columns, *cells, strict=True)]
    if not sys.stdout.isatty() or len(cells) > _ROWS_WORTH_DRAWING:
        _align(table)
        return
    width = shutil.get_terminal_size().columns
    for heading in spare:
        if least_width(table) > width:
            table = [column for column in table if column.heading != heading]
    for line in drawn(table, width):
        click.echo(line, color=colour())


def _align(table: Sequence[Column]) -> None:
    padded = []
    for column in table:
        texts = [column.heading.upper(), *(cell.text.replace("\n", " ") for cell in column.cells)]
        width = max(map(len, texts))
        pad = str.rjust if column.is_numeric else str.ljust
        padded.append([pad(text, width) for text in texts])
    for row in zip(*padded, strict=True):
        click.echo("  ".join(row).rstrip())


def print_fields(fields: Iterable[Sequence[object]]) -> None:
    """Rows of a name, a value and further cells about it."""
    for name, *cells in fields:
        label = click.style(f"{printable(name):<20}", fg="cyan", bold=True)
        first, *more = "  ".join(_styled(_cell(cell)) for cell in cells).split("\n")
        click.echo(f"{label} {first}".rstrip(), color=colour())
        for line in more:
            click.echo(f"{'':<20} {line}", color=colour())


def _cell(value: object) -> Cell:
    return Cell(printable(value), value.colour if isinstance(value, Marked) else "")


def _styled(cell: Cell) -> str:
    return click.style(cell.text, fg=cell.colour) if cell.colour else cell.text


def printable(value: object) -> str:
    """The text of a value for a person, with control characters escaped."""
    if isinstance(value, Marked):
        return printable(value.value)
    if value in (None, "", (), [], {}):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(printable, value))
    text = msgspec.json.encode(value).decode() if isinstance(value, dict) else str(value)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def colour() -> bool | None:
    """False where $NO_COLOR is set; None: click checks whether the stream is a terminal."""
    return False if os.environ.get("NO_COLOR") else None
