"""Commands that need an extra name it when it is not installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dspy_registry.registry_store.errors import NotPossibleError


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Import what an extra has within this. Raises NotPossibleError that names the package and the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotPossibleError(
            f"{what} needs the package {error.name}, which is not installed.",
            remedy=f"Install the extra: pip install 'dspy-module-registry[{extra}]'.",
        ) from error
