"""`backup`."""

from __future__ import annotations

from pathlib import Path

import click

from dspy_registry.cli import console
from dspy_registry.cli.waiting import when_started
from dspy_registry.registry_store.wording import counted


@click.command("backup", short_help="Copy the registry while it is in use.")
@click.argument("folder", type=console.Folder(path_type=Path))
@console.path_option
@console.json_option
def backup(folder: Path, path: Path | None, as_json: bool) -> int:
    """Copy the newest revision of the registry into FOLDER, which must be new or empty.

    Readers and the daemon go on meanwhile. The copy is compacted and synced to disk. It is a complete registry:
    `dspy-registry list --path FOLDER` shows what it holds. A backup that fails leaves nothing behind.

    When the registry has lost acknowledged changes, the backup is made of what is left, it is said what is missing, and
    the exit status is 1.
    """
    import msgspec

    from dspy_registry.registry_store.backup import backup as make

    with console.spinner(f"backing up into {folder}", quiet=as_json):
        made = when_started(lambda: make(folder, path))
    if as_json:
        console.print_json(msgspec.structs.asdict(made))
    else:
        click.echo(
            f"{made.path} holds revision {made.revision}: {counted(made.modules, 'module')}, {made.bytes:,} bytes"
        )
    if made.missing is None:
        return 0
    if not as_json:
        console.print_warning(made.missing)
    return 1
