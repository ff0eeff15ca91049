"""Waiting for a registry or a daemon that is just being started, as in `dspy-registry serve &` and then a command."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import click

from dspy_registry.cli import console
from dspy_registry.registry_store.errors import (
    InvalidArgumentError,
    RegistryError,
    RegistryNotFoundError,
    WriterUnavailableError,
)
from dspy_registry.registry_store.number_text import number

if TYPE_CHECKING:
    from dspy_registry.readers.registry import Registry
    from dspy_registry.registry_store.environment import Environment

Value = TypeVar("Value")

VARIABLE: Final = "DSPY_REGISTRY_WAIT"
DEFAULT_SECONDS: Final = 3.0
"""About six times what a daemon needs to create a registry on a machine with nothing else to do."""

_PAUSE: Final = 0.05  # seconds between two attempts
_AT_ONCE: Final = 1e-9  # seconds: one attempt, which an incomplete registry fails


def when_started(action: Callable[[], Value]) -> Value:
    """What `action` returns. While there is no registry or no daemon, it is tried again for `wait_seconds()`.

    Raises what the last attempt raises: RegistryNotFoundError, WriterUnavailableError.
    """
    deadline = time.monotonic() + wait_seconds()
    try:
        return action()
    except (RegistryNotFoundError, WriterUnavailableError) as error:
        if time.monotonic() >= deadline:
            raise
        first = error
    with _waiting_for(first):
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            try:
                return action()
            except (RegistryNotFoundError, WriterUnavailableError):
                pass
    return action()


def wait_seconds() -> float:
    """Seconds to wait: $DSPY_REGISTRY_WAIT, else DEFAULT_SECONDS; 0: do not wait. Raises InvalidArgumentError."""
    text = os.environ.get(VARIABLE, "")
    seconds = number(text) if text else DEFAULT_SECONDS
    if seconds is None or seconds < 0:
        raise InvalidArgumentError(f"${VARIABLE} is {text!r}; it must be a number of seconds, 0 or more.")
    return seconds


def open_registry(path: Path | None) -> Registry:
    """The registry, opened for reading once it is complete. Raises RegistryNotFoundError."""
    from dspy_registry.readers.registry import Registry

    try:
        return Registry(path, wait=_AT_ONCE)
    except RegistryNotFoundError as error:
        seconds = wait_seconds()
        if not seconds:
            raise
        with _waiting_for(error):
            return Registry(path, wait=seconds)


def attach_complete(path: Path | None) -> Environment:
    """The environment of the registry, once it is complete, to be detached. Raises RegistryNotFoundError."""
    from dspy_registry.registry_store.sharing import attach

    with open_registry(path) as registry:
        return attach(registry.path)


def _waiting_for(missing: RegistryError) -> AbstractContextManager[None]:
    context = click.get_current_context(silent=True)
    quiet = bool(context and context.params.get("as_json"))
    return console.spinner(f"{missing.message} Waiting for it", quiet=quiet)
