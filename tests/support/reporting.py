"""A reporter beside a registry, in this process or another, and what has arrived of its calls."""

from __future__ import annotations

import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import Registry, RegistryWriter, UsageReporter
from dspy_registry.registry_store.usage_rows import calls_lost
from tests.support.fork_server import run_code

SELDOM = 3600.0
"""An interval after which nothing is sent unless it is asked for."""


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
    return run_code(head + textwrap.dedent(code), *arguments)
