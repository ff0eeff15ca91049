"""What all commands share: options, JSON for programs, errors, and progress on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from dspy_registry.cli.drawing import fitted
from dspy_registry.cli.tables import colour, line_width, printable
from dspy_registry.registry_store.errors import NotPossibleError
from dspy_registry.registry_store.paths import ENVIRONMENT_VARIABLE
from dspy_registry.registry_store.protocol import Progress

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Folder(click.Path):
    """A path that must not be empty: an empty one would mean the current folder."""

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        if value == "":
            self.fail("it is empty; name the registry's folder.", param, ctx)
        return super().convert(value, param, ctx)


def path_option(command: Decorated) -> Decorated:
    """`--path`: the folder of the registry; None when neither it nor $DSPY_REGISTRY is given."""
    return click.option(
        "-p",
        "--path",
        type=Folder(path_type=Path),
        envvar=ENVIRONMENT_VARIABLE,
        show_envvar=True,
        help="Folder of the registry.",
    )(command)


def json_option(command: Decorated) -> Decorated:
    """`--json`: for programs. Errors are JSON too, on stderr."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, errors included.")(command)


# JSON


def encode_json(value: Any) -> bytes:
    """The JSON of a value. Text that is no UTF-8, as a command's arguments may be, is escaped: \\udcff."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_escaped(msgspec.to_builtins(value)))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return [_escaped(item) for item in value] if isinstance(value, list | tuple) else value


def print_json(value: Any) -> None:
    """One document, indented."""
    click.echo(msgspec.json.format(encode_json(value), indent=2))


def print_json_line(value: Any) -> None:
    """One document on one line."""
    click.echo(encode_json(value))


def print_json_items(head: dict[str, Any], key: str, items: Iterable[Any]) -> None:
    """One object: `head`, and under `key` a list with an item per line. The items need not fit into memory."""
    opening = "".join(f"{_json(name)}: {_json(value)},\n" for name, value in head.items())
    click.echo(f"{{{opening}{_json(key)}: [", nl=False)
    separator = "\n"
    for item in items:
        click.echo(f"{separator}{_json(item)}", nl=False)
        separator = ",\n"
    click.echo("\n]}")


def _json(value: Any) -> str:
    return encode_json(value).decode()


# For people


def local_time(milliseconds: int) -> str:
    """Milliseconds since the epoch as local time."""
    return datetime.fromtimestamp(milliseconds / 1000).astimezone().isoformat(sep=" ", timespec="seconds")


_UNITS = ((86_400, "d"), (3600, "h"), (60, "m"))


def duration(seconds: float) -> str:
    """As options take it: 90s, 15m, 6h, 7d."""
    for length, unit in _UNITS:
        if seconds >= length and not seconds % length:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def print_done(text: str, facts: dict[str, Any], *, as_json: bool) -> None:
    """What a change did: a sentence and the revision that shows it, or the facts as JSON."""
    if as_json:
        print_json(facts)
    else:
        click.echo(f"{printable(text)}, as of revision {facts['revision']}")


def say(text: str, *, mark: str = "", mark_colour: str = "") -> None:
    """A line for people, on stderr, beside the answer on stdout. `mark` is a word before it."""
    width = line_width(sys.stderr)
    lines = (f"{mark} {text}" if mark else text).split("\n")
    parts = [part for line in lines for part in ([line] if width is None else fitted(line, width))]
    if mark:
        parts[0] = click.style(mark, fg=mark_colour, bold=True) + parts[0][len(mark) :]
    for part in parts:
        click.echo(part, err=True, color=colour())


def print_warning(text: str) -> None:
    """A warning, on stderr."""
    say(printable(text), mark="warning:", mark_colour="yellow")


def print_error(kind: str, message: str, remedy: str = "", *, as_json: bool = False) -> None:
    """What went wrong and what helps, on stderr."""
    if as_json:
        error = {"error": {"type": kind, "message": message, "remedy": remedy}}
        click.echo(encode_json(error), err=True)
        return
    say(printable(message), mark="error:", mark_colour="red")
    if remedy:
        say(printable(remedy))


def confirm(question: str) -> None:
    """Ask on stderr, once nothing else stands in the way. Raises NotPossibleError for no and where nobody answers."""
    try:
        if click.confirm(question, err=True):
            return
        said = "the answer was no, so"
    except click.Abort as end:  # Ctrl-C, or the end of the input
        if not isinstance(end.__context__, EOFError):
            raise
        click.echo(err=True)  # after the question
        said = "nobody answered, so"
    raise NotPossibleError(f"{said} nothing was changed.", remedy="Without a terminal, give --yes.")


# Progress, on stderr: shown on a terminal only, and not when `quiet`


@contextmanager
def progress(what: str, *, quiet: bool = False) -> Iterator[Progress]:
    """A progress bar. Call what is yielded with (done, total) to move it."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Bars(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def spinner(what: str, *, quiet: bool = False) -> Iterator[None]:
    """A spinner, for work of unknown length."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(printable(what))):
        yield
