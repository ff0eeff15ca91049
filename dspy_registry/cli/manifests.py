"""`schema` and `manifests check`, and the options of `serve` that name manifests and discovery."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dspy_registry.cli import console
from dspy_registry.cli.discover import discovery_options
from dspy_registry.registry_store.wording import counted

if TYPE_CHECKING:
    from dspy_registry.writer.daemon.lifecycle import Daemon

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


@click.command("schema", short_help="Print the JSON Schema of manifests.")
def schema() -> None:
    """Print the JSON Schema of manifests, for editors.

    \b
    dspy-registry schema > manifest.schema.json
    """
    from dspy_registry.writer.manifests.schema import schema_text

    click.echo(schema_text(), nl=False)


@click.group("manifests", short_help="Check manifests before they are served.")
def manifests() -> None:
    """Work with manifests."""


@manifests.command("check", short_help="Check a folder of manifests.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("-p", "--path", type=console.Folder(path_type=Path), help="Also compare them with this registry.")
@console.json_option
def check(directory: Path, path: Path | None, as_json: bool) -> int:
    """Check every manifest in DIRECTORY, each alone and all together.

    Needs no registry. With --path, they are also checked against that registry: whether the modules exist that
    aliases lead to, and which modules a client's record overrides. Changes nothing. Exits with 1 when something is
    wrong.
    """
    from dspy_registry.writer.manifests.attach import validate_tree
    from dspy_registry.writer.manifests.folder_watch import plain_error
    from dspy_registry.writer.manifests.text import SUFFIXES

    report = validate_tree(directory, path)
    if as_json:
        errors = [plain_error(error) for error in report.errors]
        console.print_json(
            {
                "directory": report.directory,
                "files": report.files,
                "modules": report.modules,
                "errors": errors,
                "overrides": report.overrides,
            }
        )
    else:
        if not report.files and not report.errors:
            console.print_warning(f"{directory} holds no manifest: no file in it ends with {', '.join(SUFFIXES)}.")
        for error in report.errors:
            console.print_error("", str(error))
        for name in report.overrides:
            console.print_warning(f"{name}: a client's record overrides it; see `dspy-registry release`.")
        counts = ((report.files, "file"), (report.modules, "module"), (len(report.errors), "error"))
        console.say(", ".join(counted(*each) for each in counts))
    return 1 if report.errors else 0


def watch_options(command: Decorated) -> Decorated:
    """`--manifests` and `--discover`, and what discovery looks through; give them to `watching`."""
    folder = click.Path(exists=True, file_okay=False, path_type=Path)
    for option in (
        discovery_options,
        click.option("--discover", is_flag=True, help="Discover modules, now and when packages change."),
        click.option(
            "--manifests",
            type=folder,
            metavar="DIR",
            envvar="DSPY_REGISTRY_MANIFESTS",
            show_envvar=True,
            help="Load the manifests in DIR and follow changes.",
        ),
    ):
        command = option(command)
    return command


def watching(
    *, manifests: Path | None, discover: bool, packages: tuple[str, ...], python: str | None, timeout: float | None
) -> Callable[[Daemon], None]:
    """The daemon's extension that follows the folder `manifests`, unless None, and with `discover` installed packages.

    Raises click.UsageError for an option of discovery without `discover`, InvalidArgumentError for a bad time limit.
    """
    if not discover and (packages or python is not None or timeout is not None):
        raise click.UsageError("--package, --python and --timeout need --discover.")
    if timeout is not None:
        from dspy_registry.writer.discovery.report import check_timeout

        check_timeout(timeout)

    def attach(daemon: Daemon) -> None:
        from dspy_registry.writer.discovery.package_watch import attach_discovery
        from dspy_registry.writer.manifests.attach import attach_manifests

        watch = attach_manifests(daemon, manifests) if manifests is not None else None
        if discover:
            then = watch.look_again if watch is not None else lambda: None
            attach_discovery(daemon, packages=packages, python=python, timeout=timeout, then=then)

    return attach
