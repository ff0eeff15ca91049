"""The commands that read, for the entry point. Each loads what it needs when it runs."""

from __future__ import annotations

import click

from readers.cli_backup import backup
from readers.cli_check import check
from readers.cli_follow import watch
from readers.cli_history import history
from readers.cli_query import find, get, list_modules, route
from readers.cli_stats import stats

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
