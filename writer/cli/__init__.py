"""The commands that write, for the entry point. Each loads what it needs when it runs."""

from __future__ import annotations

import click

from writer.cli.alias import alias
from writer.cli.change import register, unregister
from writer.cli.demo import demo
from writer.cli.discover import discover
from writer.cli.manifests import manifests, schema
from writer.cli.restore import restore
from writer.cli.rollback import rollback
from writer.cli.serve import serve
from writer.cli.status import status

commands: list[click.Command] = [
    serve,
    register,
    unregister,
    rollback,
    restore,
    alias,
    discover,
    manifests,
    schema,
    status,
    demo,
]
