"""How a table is laid out on a terminal of some width. Pure but for the styles, which click makes.

A column of one-word cells is never broken. A column of texts may wrap, but not below a width that reads well. Where
that does not fit, the first cell of each row, mostly a name, gets a separate line. Where even the rest does not fit,
every cell gets one.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import click

_GAP: Final = 2
_READABLE: Final = 24
"""Characters. A text is wrapped no narrower, unless it is shorter."""
_INDENT: Final = "  "
_FURTHER: Final = 4


class Cell(NamedTuple):
    """A text to show, and its colour ("": none)."""

    text: str
    colour: str = ""


class Column(NamedTuple):
    """A heading and the cells under it."""

    heading: str
    cells: list[Cell]

    @property
    def is_numeric(self) -> bool:
        """Whether the cells are numbers, which stand on the right."""
        return all(cell.text.replace(",", "").isdigit() for cell in self.cells)

    @property
    def widest(self) -> int:
        """The width in which nothing is wrapped."""
        return max(len(line) for text in self._texts() for line in text.split("\n"))

    @property
    def narrowest(self) -> int:
        """The width that it needs to read well."""
        words = max((len(word) for text in self._texts() for word in text.split()), default=0)
        return min(self.widest, max(words, _READABLE))

    def _texts(self) -> Iterator[str]:
        yield self.heading
        yield from (cell.text for cell in self.cells)


def least_width(table: Sequence[Column]) -> int:
    """The width that a table needs in one piece."""
    return sum(column.narrowest for column in table) + _GAP * (len(table) - 1)


def drawn(table: Sequence[Column], width: int) -> Iterator[str]:
    """The lines of a table, none wider than `width` unless a single word is wrapped to it."""
    first, rest = table[0], table[1:]
    if least_width(table) <= width:
        widths = _widths(table, width)
        yield from _headings(table, widths)
        for row in _rows(table):
            yield from _lines(table, row, widths)
    elif rest and least_width(rest) + len(_INDENT) <= width:
        widths = _widths(rest, width - len(_INDENT))
        yield click.style(first.heading, bold=True)
        yield from (_INDENT + line for line in _headings(rest, widths))
        for name, *others in _rows(table):
            yield from _one_column(name, width, "cyan")
            yield from (_INDENT + line for line in _lines(rest, others, widths))
    else:
        for name, *others in _rows(table):
            yield from _one_column(name, width, "cyan")
            for column, cell in zip(rest, others, strict=True):
                labelled = Cell(f"{column.heading} {cell.text}", cell.colour)
                yield from (_INDENT + line for line in _one_column(labelled, width - len(_INDENT), ""))


def fitted(text: str, width: int, indent: int | None = None) -> list[str]:
    """A line in lines of at most `width`; one that fits is as it is.

    Those that follow the first begin with `indent` spaces; None: with some more than the line.
    """
    if len(text) <= width:
        return [text]
    if indent is None:
        indent = min(len(text) - len(text.lstrip()) + _FURTHER, width // 2)
    parted, further = _parted(text, width - indent), " " * indent
    return textwrap.wrap(parted, width, subsequent_indent=further, break_on_hyphens=False) or [""]  # of blanks only


def _widths(table: Sequence[Column], width: int) -> list[int]:
    """The columns' widths. What is left over goes to those that wrap, from the left."""
    widths = [column.narrowest for column in table]
    left = width - least_width(table)
    for number, column in enumerate(table):
        more = min(left, column.widest - widths[number])
        widths[number] += more
        left -= more
    return widths


def _headings(table: Sequence[Column], widths: Sequence[int]) -> Iterator[str]:
    cells = [
        column.heading.rjust(width) if column.is_numeric else column.heading.ljust(width)
        for column, width in zip(table, widths, strict=True)
    ]
    yield click.style((" " * _GAP).join(cells).rstrip(), bold=True)
    yield "─" * (sum(widths) + _GAP * (len(widths) - 1))


def _rows(table: Sequence[Column]) -> Iterator[tuple[Cell, ...]]:
    return zip(*(column.cells for column in table), strict=True)


def _lines(table: Sequence[Column], row: Sequence[Cell], widths: Sequence[int]) -> Iterator[str]:
    """One row, of as many lines as its longest cell takes."""
    wrapped = [_wrapped(cell.text, width) for cell, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, wrapped))):
        parts = []
        for at, (column, cell, lines) in enumerate(zip(table, row, wrapped, strict=True)):
            text = lines[number] if number < len(lines) else ""
            padded = text.rjust(widths[at]) if column.is_numeric else text.ljust(widths[at])
            parts.append(_styled(padded, cell.colour or ("cyan" if column is table[0] else "")))
        yield (" " * _GAP).join(parts).rstrip()


def _one_column(cell: Cell, width: int, colour: str) -> Iterator[str]:
    return (_styled(line, cell.colour or colour) for line in _wrapped(cell.text, width))


def _wrapped(text: str, width: int) -> list[str]:
    lines = [textwrap.wrap(_parted(line, width), width, break_on_hyphens=False) or [""] for line in text.split("\n")]
    return [part for parts in lines for part in parts]


def _parted(text: str, width: int) -> str:
    """The text with a space after the @ of each word that fits into no line: there it is wrapped, and loses it."""
    for word in text.split():
        if len(word) > width and "@" in word:
            text = text.replace(word, word.replace("@", "@ "))
    return text


def _styled(text: str, colour: str) -> str:
    return click.style(text, fg=colour) if colour and text.strip() else text
