"""`restore`."""

from __future__ import annotations

from pathlib import Path

import click

from dspy_registry.cli import console
from dspy_registry.registry_store.wording import counted


@click.command("restore", short_help="Replace the registry by a backup.")
@click.argument("backup", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--yes", is_flag=True, help="Do not ask before the registry's data is replaced.")
@console.path_option
@console.json_option
def restore(backup: Path, yes: bool, path: Path | None, as_json: bool) -> None:
    """Replace the data of the registry by that of BACKUP, a folder that `backup` made.

    Stop the daemon first, and start it again afterwards. Readers may go on: they drop what they have cached, and
    read what was restored. A backup with violations that `check` finds is refused.

    \b
    dspy-registry restore /backups/monday --path /var/lib/dspy-registry
    """
    import msgspec

    from dspy_registry.registry_store.paths import registry_path
    from dspy_registry.writer.restore import check_restorable
    from dspy_registry.writer.restore import restore as put_in_place

    folder = registry_path(path)
    if not yes:
        check_restorable(backup, folder)
        console.confirm(f"Replace what {folder} holds now?")
    with console.spinner(f"restoring {backup}", quiet=as_json):
        done = put_in_place(backup, folder)
    if as_json:
        console.print_json(msgspec.structs.asdict(done))
    else:
        click.echo(f"{done.path} is at revision {done.revision} of {backup}: {counted(done.modules, 'module')}")
