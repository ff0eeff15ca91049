"""Tables and fields for people. Stored text cannot send control characters to the terminal.

Rich is loaded for a terminal only. Elsewhere a table is aligned text, never cut, so that `grep` and `awk` can use it.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Final

import click
import msgspec

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


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, spare: Sequence[str] = ()) -> None:
    """A table: drawn on a terminal, else aligned text under one line of headings.

    On a terminal that is too narrow, `spare` columns are left out, the first one first.
    """
    texts = [[printable(cell) for cell in row] for row in rows]
    table = [list(column) for column in zip(columns, *texts, strict=True)]
    if not sys.stdout.isatty() or len(texts) > _ROWS_WORTH_DRAWING:
        _align([[heading.upper(), *cells] for heading, *cells in table])
        return
    for heading in spare:
        if _width(table) > shutil.get_terminal_size().columns:
            table = [column for column in table if column[0] != heading]
    _draw(table)


def _draw(table: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading, *cells in table:
        drawn.add_column(
            heading,
            no_wrap=not _wraps(cells),
            overflow="fold",
            justify="right" if _is_numeric(cells) else "left",
        )
    drawn.columns[0].style = "cyan"
    for row in zip(*(cells for _, *cells in table), strict=True):
        drawn.add_row(*map(Text, row))
    Console().print(drawn)


def _align(table: list[list[str]]) -> None:
    padded = []
    for heading, *cells in table:
        width = max(map(len, (heading, *cells)))
        pad = str.rjust if _is_numeric(cells) else str.ljust
        padded.append([pad(cell.replace("\n", " "), width) for cell in (heading, *cells)])
    for row in zip(*padded, strict=True):
        click.echo("  ".join(row).rstrip())


def _width(table: list[list[str]]) -> int:
    """The least width of a table, with each wrapping column as wide as its longest word."""
    words = [[word for cell in column for word in (cell.split() if _wraps(column) else [cell])] for column in table]
    return sum(max(map(len, column), default=0) + 3 for column in words)


def _wraps(cells: list[str]) -> bool:
    return any(" " in cell for cell in cells)


def _is_numeric(cells: list[str]) -> bool:
    return all(cell.replace(",", "").isdigit() for cell in cells)


def print_fields(fields: Iterable[Sequence[object]]) -> None:
    """Rows of a name, a value and further cells about it."""
    for name, *cells in fields:
        label = click.style(f"{printable(name):<20}", fg="cyan", bold=True)
        first, *more = "  ".join(printable(cell) for cell in cells).split("\n")
        click.echo(f"{label} {first}".rstrip(), color=colour())
        for line in more:
            click.echo(f"{'':<20} {line}")


def printable(value: object) -> str:
    """The text of a value for a person, with control characters escaped."""
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
