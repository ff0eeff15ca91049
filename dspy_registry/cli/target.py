"""Where the commands that change something send it: to the daemon, or to a writer in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dspy_registry.cli.waiting import when_started

if TYPE_CHECKING:
    from dspy_registry.writer.client.client import WriterClient
    from dspy_registry.writer.registry_writer import RegistryWriter

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class NewName(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases
    """A name that a module or an alias may get."""

    name = "name"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name, if it may be one whatever the registry holds."""
        from dspy_registry.registry_store.validation import name_problems

        if problems := list(name_problems(value)):
            self.fail("; ".join(map(str, problems)), param, ctx)
        return str(value)


def embedded_option(command: Decorated) -> Decorated:
    """`--embedded`: write in this process, without a daemon."""
    return click.option("--embedded", is_flag=True, help="Write directly: no daemon runs for this registry.")(command)


def open_client(path: Path | None) -> WriterClient:
    """A client of the daemon, once it answers. Raises WriterUnavailableError when no daemon runs."""
    from dspy_registry.writer.client.client import WriterClient

    client = WriterClient(path)
    try:
        when_started(client.status)
    except BaseException:
        client.close()
        raise
    return client


def open_writer(path: Path | None, embedded: bool) -> WriterClient | RegistryWriter:
    """A client of the daemon, once it answers, or with `embedded` the writer. Both have the same calls.

    Raises WriterUnavailableError when no daemon runs, WriterLockedError when there is another writer.
    """
    if embedded:
        from dspy_registry.writer.registry_writer import RegistryWriter

        return RegistryWriter(path)
    return open_client(path)
