"""`repair`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from dspy_registry.cli import console, tables
from dspy_registry.registry_store.wording import counted

if TYPE_CHECKING:
    from dspy_registry.writer.repair.account import Repaired

_PLACE: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("repair", short_help="Write what can be read of a damaged registry into a new one.")
@click.argument("folder", type=_PLACE)
@click.option("--into", required=True, type=console.Folder(path_type=Path), help="A new or empty folder.")
@click.option("--backup", type=_PLACE, help="A backup, or a folder of backups: the newest counts.")
@click.option("--manifests", type=_PLACE, help="Manifests to take lost modules from.")
@console.json_option
def repair(folder: Path, into: Path, backup: Path | None, manifests: Path | None, as_json: bool) -> int:
    """Read what can still be read of the registry in FOLDER, row by row, and write it into a new registry.

    FOLDER is left as it is, and its daemon must be stopped. Indexes are made of the records. What is damaged is taken
    from the state before, from the history, from a backup, and from manifests. All of that is listed, and all that is
    lost with the reason. Exits with 0 when nothing is lost, else with 1.

    \b
    dspy-registry repair /var/lib/dspy-registry --into /var/lib/repaired --backup /backups
    dspy-registry restore /var/lib/repaired --path /var/lib/dspy-registry
    """
    import msgspec

    from dspy_registry.writer.repair.repair import repair as carry_out

    with console.progress(f"reading {folder}", quiet=as_json) as progress:
        done = carry_out(folder, into, backups=backup, manifests=manifests, progress=progress)
    if as_json:
        console.print_json(msgspec.to_builtins(done))
    else:
        _print(done)
    return 1 if done.lost else 0


def _print(done: Repaired) -> None:
    _list("damaged", done.damage)
    _list("taken", (f"{each.where}: from {each.origin}" for each in done.taken))
    _list("lost", (f"{each.where}: {each.reason}" for each in done.lost))
    lost = f"{len(done.lost):,} lost" if done.lost else "nothing lost"
    taken = f"{counted(len(done.taken), 'row')} taken from elsewhere"
    click.echo(f"{done.path} holds revision {done.revision}: {counted(done.modules, 'module')}, {taken}, {lost}")


def _list(kind: str, lines: Iterable[str]) -> None:
    for line in lines:
        click.echo(tables.printable(f"{kind:8} {line}"))
