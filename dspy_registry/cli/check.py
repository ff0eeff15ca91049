"""`check`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from dspy_registry.cli import console
from dspy_registry.cli.waiting import when_started


@click.command("check", short_help="Check every invariant of the registry.")
@console.path_option
@console.json_option
def check(path: Path | None, as_json: bool) -> int:
    """Check that records, indexes, aliases, history and change log agree, and that none is damaged.

    A writer may be at work meanwhile. Exits with 1 when something is wrong.
    """
    from dspy_registry.registry_store.check.checker import check_apart
    from dspy_registry.registry_store.paths import registry_path

    folder = registry_path(path)

    _wait_until_created(folder)
    # A separate process looks, because reading a damaged file can kill the process that reads.
    with console.spinner(f"checking {folder}", quiet=as_json):
        violations = list(check_apart(folder))
    if as_json:
        console.print_json({"path": str(folder), "violations": [msgspec.to_builtins(found) for found in violations]})
    else:
        click.echo("\n".join(map(str, violations)) or f"{folder} is sound")
    return 1 if violations else 0


def _wait_until_created(folder: Path) -> None:
    """Wait for a registry that is being created. One without a revision file is checked too: that is a violation."""
    from dspy_registry.registry_store.errors import RegistryNotFoundError
    from dspy_registry.registry_store.layout import DATA_FILE, REVISION_FILE

    def look() -> None:
        if not (folder / REVISION_FILE).exists():  # it is created last
            raise RegistryNotFoundError(f"there is no registry in {folder}.")

    try:
        when_started(look)
    except RegistryNotFoundError:
        if not (folder / DATA_FILE).exists():
            raise
