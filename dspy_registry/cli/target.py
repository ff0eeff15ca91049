"""Where the commands that change something send it: to the daemon, or to a writer of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from dspy_registry.writer.client.client import WriterClient
    from dspy_registry.writer.registry_writer import RegistryWriter

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def embedded_option(command: Decorated) -> Decorated:
    """`--embedded`: write from within this process."""
    return click.option("--embedded", is_flag=True, help="Write directly: no daemon runs for this registry.")(command)


def open_writer(path: Path | None, embedded: bool) -> WriterClient | RegistryWriter:
    """A client of the daemon, or the registry's one writer. Both are context managers with the same calls.

    Raises WriterUnavailableError when no daemon runs, WriterLockedError when there is another writer.
    """
    if embedded:
        from dspy_registry.writer.registry_writer import RegistryWriter

        return RegistryWriter(path)
    from dspy_registry.writer.client.client import WriterClient

    return WriterClient(path)
