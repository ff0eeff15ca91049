"""`rename`, `release`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import click

from dspy_registry.cli import completion, console
from dspy_registry.cli.target import NewName, embedded_option, open_writer
from dspy_registry.cli.waiting import open_registry


@click.command("rename", short_help="Give a module another name.")
@click.argument("name", metavar="OLD", shell_complete=completion.modules)
@click.argument("new_name", metavar="NEW", type=NewName())
@embedded_option
@console.path_option
@console.json_option
def rename(name: str, new_name: str, embedded: bool, path: Path | None, as_json: bool) -> None:
    """Give the client's module OLD, by its full name, the name NEW. Its aliases go with it.

    It is a new module: its history and statistics stay under the old name. A module that a manifest declares is
    renamed there. `check` lists the names of earlier releases that are to be renamed.
    """
    with open_writer(path, embedded) as writer:
        revision = writer.rename_module(name, new_name)
    facts = {"revision": revision, "name": name, "new_name": new_name}
    console.print_done(f"{name} is {new_name} now", facts, as_json=as_json)


@click.command("release", short_help="End an override of a manifest's module.")
@click.argument("names", metavar="NAME...", nargs=-1, required=True, shell_complete=completion.modules)
@embedded_option
@console.path_option
@console.json_option
def release(names: tuple[str, ...], embedded: bool, path: Path | None, as_json: bool) -> None:
    """Let modules, by their full names, go back to what manifests, core and discovery declare of them.

    What a client registers over such a module, by `register` or `rollback`, is an override: as long as it lasts, what
    the manifest says does not count. `get`, `list` and `status` show it. The override's record stays in the history.
    """
    revision = 0
    asked = dict.fromkeys(names)
    with open_writer(path, embedded) as writer:
        overriding = _overriding(path, asked)
        for name in asked:
            revision = writer.release(name)
    facts = {"revision": revision, "names": names, "released": overriding}
    for name in [] if as_json else [name for name in asked if name not in overriding]:
        console.say(f"{name} overrides nothing: it stays as it is")
    if overriding or as_json:
        console.print_done(f"released {', '.join(overriding)}", facts, as_json=as_json)


def _overriding(path: Path | None, names: Iterable[str]) -> list[str]:
    """Which of these modules, by full name, override what others declare now."""
    with open_registry(path) as registry:
        return [name for name in names if name in registry and registry.overridden(name)]
