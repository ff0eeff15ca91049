"""`check`."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from dspy_registry.cli import console
from dspy_registry.cli.tables import print_text
from dspy_registry.cli.waiting import when_started


@click.command("check", short_help="Check every invariant of the registry.")
@console.path_option
@console.json_option
def check(path: Path | None, as_json: bool) -> int:
    """Check that records, indexes, aliases, history and change log agree, and that none is damaged.

    A writer may be at work meanwhile. Exits with 1 when something is wrong. Names that an earlier release took and this
    one would not are listed; they are not wrong, and `rename` mends them.
    """
    from dspy_registry.registry_store.check.checker import check_apart
    from dspy_registry.registry_store.check.old_names import OldNames, old_names
    from dspy_registry.registry_store.paths import registry_path

    folder = registry_path(path)

    _wait_until_created(folder)
    # A separate process looks, because reading a damaged file can kill the process that reads.
    with console.spinner(f"checking {folder}", quiet=as_json):
        violations = list(check_apart(folder))
    old = OldNames() if violations else old_names(folder)
    if as_json:
        plain = [msgspec.to_builtins(found) for found in violations]
        console.print_json({"path": str(folder), "violations": plain, "old_names": msgspec.to_builtins(old)})
    else:
        print_text("\n".join(map(str, violations)) or f"{folder} is sound")
        for name in old.modules:
            console.print_warning(f"{name!r} is no name for a module any longer: `dspy-registry rename` gives another.")
        for alias in old.aliases:
            console.print_warning(f"{alias!r} is no alias any longer: set another, and remove it.")
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
