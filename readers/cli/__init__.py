"""The commands that read, for the entry point. Each loads what it needs when it runs."""

from __future__ import annotations

import click

from readers.cli.backup import backup
from readers.cli.check import check
from readers.cli.follow import watch
from readers.cli.history import history
from readers.cli.query import find, get, list_modules, route
from readers.cli.stats import stats

commands: list[click.Command] = [
    get,
    list_modules,
    find,
    route,
    stats,
    history,
    watch,
    check,
    backup,
]
