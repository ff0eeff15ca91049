"""What the stages of the demo share."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from dspy_registry.writer.client.client import WriterClient
from dspy_registry.writer.core_modules import CORE_MODULES


class Demo:
    """`facts` is what --json prints; `failures` make the demo end with 1."""

    def __init__(self, stack: ExitStack, folder: Path, seconds: float, readers: int, *, quiet: bool) -> None:
        self.stack = stack
        self.folder = folder
        self.registry = folder / "registry"
        self.manifests = folder / "manifests"
        self.seconds = seconds
        self.readers = readers
        self.quiet = quiet
        self.steady = [info.name for info in CORE_MODULES]
        self.facts: dict[str, Any] = {}
        self.failures: list[str] = []
        self.client: WriterClient

    def say(self, text: str = "") -> None:
        """A line of the demo's story."""
        if not self.quiet:
            click.echo(text)

    def title(self, text: str) -> None:
        """The heading of a stage."""
        self.say(click.style(text, bold=True))
