"""A reporter beside a registry, in this process or another, and what has arrived of its calls."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import Registry, RegistryWriter, UsageReporter
from dspy_registry.registry_store.usage_rows import calls_lost
from tests.support.fork_server import run_code
from tests.support.usage_helpers import recorded

SELDOM = 3600.0
"""An interval after which nothing is sent unless it is asked for."""


class NotingReporter(UsageReporter):
    """Reports, and keeps the arguments of each `record` in the order of a queued call."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, interval=SELDOM)
        self.calls: list[tuple[Any, ...]] = []

    def record(self, name: Any, duration_ms: Any, *arguments: Any, **named: Any) -> None:
        self.calls.append(recorded(name, duration_ms, *arguments, **named))
        super().record(name, duration_ms, *arguments, **named)


@pytest.fixture
def reporter(seeded_registry: Path) -> Iterator[UsageReporter]:
    """A reporter that sends only when it is asked to."""
    with UsageReporter(seeded_registry, interval=SELDOM) as reporter:
        yield reporter


def calls(path: Path, name: str = "dspy.Predict") -> int:
    """How many calls of a module have arrived."""
    with Registry(path) as registry:
        return registry.usage(name).calls


def lost(path: Path) -> int:
    """How many calls were told to be lost."""
    with RegistryWriter(path) as writer, writer.store.environment.reading() as txn:
        return calls_lost(txn, writer.store.environment.dbs)


def worker(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A process of its own, with `path` being its first argument."""
    head = "import sys\nfrom dspy_registry import UsageReporter\npath = sys.argv[1]\n"
    return run_code(head + textwrap.dedent(code), *arguments, whole_end=True)
