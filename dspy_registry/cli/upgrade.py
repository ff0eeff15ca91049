"""`upgrade`."""

from __future__ import annotations

from pathlib import Path

import click

from dspy_registry.cli import console
from dspy_registry.registry_store.wording import counted


@click.command("upgrade", short_help="Give the registry this release's format.")
@click.option("--backup", type=click.Path(path_type=Path), help="A new or empty folder for the registry as it was.")
@click.option("--yes", is_flag=True, help="Do not ask first.")
@console.path_option
@console.json_option
def upgrade(backup: Path | None, yes: bool, path: Path | None, as_json: bool) -> None:
    """Give the registry the format of this release, after a check and a backup.

    Install this release for all workers first, then for the daemon, then stop the daemon and upgrade. Older releases
    refuse the new format by name. Readers of this release go on. The backup is kept: to go back, restore it.

    \b
    dspy-registry upgrade --path /var/lib/dspy-registry --backup /backups/format-1
    """
    import msgspec

    from dspy_registry.registry_store.paths import registry_path
    from dspy_registry.writer.upgrade import is_needed
    from dspy_registry.writer.upgrade import upgrade as carry_out

    folder = registry_path(path)
    if not yes and is_needed(folder):
        console.confirm(f"Upgrade {folder}? Earlier releases cannot read it afterwards.")
    with console.spinner(f"upgrading {folder}", quiet=as_json):
        done = carry_out(folder, backup)
    if as_json:
        console.print_json(msgspec.structs.asdict(done))
    elif done.backup is None:
        click.echo(f"{done.path} has format {done.format} already")
    else:
        click.echo(f"{done.path} has format {done.format}: revision {done.revision}, {counted(done.modules, 'module')}")
        click.echo(f"as it was, with format {done.former_format}, it is in {done.backup}")
