"""The options of `serve` for backups and checks while it runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from dspy_registry.cli.numbers import Whole

if TYPE_CHECKING:
    from dspy_registry.writer.daemon.lifecycle import Daemon

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_UNITS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_FORM: Final = re.compile(r"([0-9]{1,9})([smhd]?)")
_LONGEST: Final = 366 * 86400
DEFAULT_KEEP: Final = 24


def seconds_of(_context: click.Context, _option: click.Parameter, value: str | None) -> float | None:
    """The seconds of an interval: 90, 90s, 15m, 1h, 7d. None stays None. Raises click.BadParameter."""
    if value is None:
        return None
    found = _FORM.fullmatch(value)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 1 <= seconds <= _LONGEST:
        raise click.BadParameter(f"{value!r} is no interval: name a number with s, m, h or d, up to 366d, as in 15m.")
    return float(seconds)


def options(command: Decorated) -> Decorated:
    """`--backup-every`, `--backup-dir`, `--keep` and `--check-every`; give them to `extension`."""
    folder = click.Path(file_okay=False, path_type=Path)
    for option in (
        click.option("--check-every", callback=seconds_of, metavar="TIME", help="Check the registry so often, as 6h."),
        click.option("--keep", type=Whole(min=1), help=f"How many backups stay.  [default: {DEFAULT_KEEP}]"),
        click.option("--backup-dir", type=folder, metavar="DIR", help="The folder of the backups."),
        click.option("--backup-every", callback=seconds_of, metavar="TIME", help="Make a backup so often, as 1h."),
    ):
        command = option(command)
    return command


def extension(chosen: dict[str, Any]) -> Callable[[Daemon], None]:
    """The daemon's extension for these options, which are taken out of `chosen`. Raises click.UsageError."""
    every, place, keep = (chosen.pop(name) for name in ("backup_every", "backup_dir", "keep"))
    check_every = chosen.pop("check_every")
    if (every is None) != (place is None):
        raise click.UsageError("--backup-every and --backup-dir need each other.")
    if keep is not None and every is None:
        raise click.UsageError("--keep needs --backup-every and --backup-dir.")

    def attach(daemon: Daemon) -> None:
        from dspy_registry.writer.daemon.backups import attach_backups
        from dspy_registry.writer.daemon.checks import attach_checks

        if every is not None:
            attach_backups(daemon, place.absolute(), every, keep or DEFAULT_KEEP)
        if check_every is not None:
            attach_checks(daemon, check_every)

    return attach
