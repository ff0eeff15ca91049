"""`rollback`."""

from __future__ import annotations

from pathlib import Path

import click

from dspy_registry.cli import completion, console
from dspy_registry.cli.beneath import warn_of_overrides
from dspy_registry.cli.numbers import Whole
from dspy_registry.cli.target import embedded_option, open_writer
from dspy_registry.cli.waiting import when_started


@click.command("rollback", short_help="Register an earlier version of a module again.")
@click.argument("name", shell_complete=completion.kept_modules)
@click.option(
    "--to",
    "version",
    type=Whole(min=1),
    metavar="VERSION",
    help="This version. Default: the one before the version in force.",
)
@embedded_option
@console.path_option
@console.json_option
def rollback(name: str, version: int | None, embedded: bool, path: Path | None, as_json: bool) -> None:
    """Register an earlier version of a module again: the one before the version in force, or --to VERSION.

    For a module that is no longer registered, the default is its last version. NAME is as for `history`, which shows
    the versions. A rollback is a new version, from a client. It is refused when the module is changed meanwhile.

    \b
    dspy-registry history acme.Summarise
    dspy-registry rollback acme.Summarise --to 3
    """
    import msgspec

    from dspy_registry.registry_store.paths import registry_path
    from dspy_registry.writer.rollback import read_versions, roll_back

    versions = when_started(lambda: read_versions(registry_path(path), name))
    with open_writer(path, embedded) as writer:
        done = roll_back(writer, versions, version)
    what = f"{done.name} is as in version {done.restored} again: version {done.version}"
    is_changed = done.version != versions.in_force
    if not is_changed:
        what = f"{done.name} is as in version {done.restored} already: version {done.version}"
    console.print_done(what, msgspec.structs.asdict(done), as_json=as_json)
    if is_changed and not as_json:
        warn_of_overrides(path, [done.name])
