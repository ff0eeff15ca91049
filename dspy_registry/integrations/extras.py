"""Connections that need an extra name it when it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Import what an extra has within this. Raises ModuleNotFoundError that names the package and the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"dspy_registry.integrations.{extra} needs the package {error.name}, which is not installed. "
            f"Install the extra: pip install 'dspy-module-registry[{extra}]'.",
            name=error.name,
        ) from error
