"""`alias`."""

from __future__ import annotations

from pathlib import Path

import click

from dspy_registry.cli import completion, console, tables
from dspy_registry.cli.target import NewName, embedded_option, open_writer
from dspy_registry.cli.waiting import open_registry


@click.group("alias", invoke_without_command=True, short_help="Further names of modules: list, set, remove.")
@click.pass_context
def alias(context: click.Context) -> None:
    """Aliases: further names of modules."""
    if context.invoked_subcommand is None:
        raise click.UsageError("Say what to do: list, set or remove.", context)


@alias.command("list", short_help="Print all aliases.")
@console.path_option
@console.json_option
def list_aliases(path: Path | None, as_json: bool) -> None:
    """Print all aliases, the module of each, and which source declared it."""
    with open_registry(path) as registry, registry.snapshot() as snapshot:
        aliases = snapshot.aliases()
    rows = [(name, meaning.name, meaning.source) for name, meaning in sorted(aliases.items())]
    columns = ("alias", "module", "source")
    if as_json:
        console.print_json({"aliases": [dict(zip(columns, row, strict=True)) for row in rows]})
    elif rows:
        tables.print_table(columns, rows)
    else:
        console.say("no aliases are declared")


@alias.command("set", short_help="Declare an alias, or change its module.")
@click.argument("name", metavar="ALIAS", type=NewName(), shell_complete=completion.aliases)
@click.argument("module", shell_complete=completion.modules)
@embedded_option
@console.path_option
@console.json_option
def set_alias(name: str, module: str, embedded: bool, path: Path | None, as_json: bool) -> None:
    """Make ALIAS a name of MODULE, which is given by its full name."""
    with open_writer(path, embedded) as writer:
        revision = writer.set_alias(name, module)
    console.print_done(f"{name} means {module}", {"revision": revision}, as_json=as_json)


@alias.command("remove", short_help="Remove an alias.")
@click.argument("name", metavar="ALIAS", shell_complete=completion.aliases)
@embedded_option
@console.path_option
@console.json_option
def remove_alias(name: str, embedded: bool, path: Path | None, as_json: bool) -> None:
    """Remove ALIAS; the module stays."""
    with open_writer(path, embedded) as writer:
        revision = writer.remove_alias(name)
    console.print_done(f"{name} is no longer an alias", {"revision": revision}, as_json=as_json)
