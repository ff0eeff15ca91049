"""Tables and fields for people. Stored text cannot send control characters to the terminal.

Off a terminal a table is aligned text, never cut, so that `grep` and `awk` can use it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TextIO

import click
import msgspec

from dspy_registry.cli.drawing import Cell, Column, drawn, fitted, least_width
from dspy_registry.registry_store.records import ModuleInfo

_ROWS_WORTH_DRAWING: Final = 2_000
_LABEL: Final = 20
_BELOW: Final = 4
_NARROWEST: Final = 40

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
    """Rows of a name, a value and further cells about it.

    On a terminal, a value that does not fit beside its name is wrapped, or stands below.
    """
    width = line_width(sys.stdout)
    for name, *values in fields:
        label, cells = printable(name), list(map(_cell, values))
        lines = "  ".join(cell.text for cell in cells).split("\n")
        beside = max(len(label), _LABEL) + 1
        if width is None or all(beside + len(line) <= width for line in lines):
            _print_field(label, "  ".join(map(_styled, cells)).split("\n"), _LABEL + 1)
            continue
        is_below = any(beside + len(word) > width for line in lines for word in line.split())
        indent = _BELOW if is_below else _LABEL + 1
        parts = [part for line in lines for part in fitted(line, width - indent, 0)]
        shown = [_styled(Cell(part, cells[0].colour)) for part in parts]
        _print_field(label, ["", *shown] if is_below or len(label) > _LABEL else shown, indent)


def _print_field(label: str, lines: Sequence[str], indent: int) -> None:
    first, *more = lines
    click.echo(f"{click.style(f'{label:<{_LABEL}}', fg='cyan', bold=True)} {first}".rstrip(), color=colour())
    for line in more:
        click.echo(f"{'':<{indent}}{line}", color=colour())


def print_text(text: str) -> None:
    """Lines of text. On a terminal, one that is too long is continued below it, indented further."""
    width = line_width(sys.stdout)
    for line in text.split("\n"):
        for part in [line] if width is None else fitted(line, width):
            click.echo(part)


def line_width(stream: TextIO) -> int | None:
    """The most characters of a line. None: it is no terminal, and a line may be of any length."""
    return max(_NARROWEST, shutil.get_terminal_size().columns) if stream.isatty() else None


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
