"""Both clients, so that one test tries either."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import AsyncWriterClient, RegistryError, WriterClient
from tests.support.daemon_process import PATIENT


class Blocking:
    """The asyncio client behind the calls of the other, so that one test tries both."""

    def __init__(self, path: Path, timeout: float | None = PATIENT) -> None:
        self._loop = asyncio.new_event_loop()
        try:
            self._client = self._run(self._made(path, timeout))
        except BaseException:
            self._loop.close()
            raise

    async def _made(self, path: Path, timeout: float | None) -> AsyncWriterClient:
        return AsyncWriterClient(path, timeout=timeout)

    def _run(self, call: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await call

        return self._loop.run_until_complete(run())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name == "revision":
            return self._run(self._client.revision())
        if name == "timeout":
            return self._client.timeout
        return lambda *given, **named: self._run(getattr(self._client, name)(*given, **named))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "timeout":
            self._client.timeout = value
        else:
            super().__setattr__(name, value)

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._client.close())
        self._loop.close()


Opened = Callable[..., Any]


def blocking(path: Path, timeout: float | None = PATIENT) -> WriterClient:
    """The blocking client, with a time limit that no test is about."""
    return WriterClient(path, timeout=timeout)


either = pytest.mark.parametrize("connect", [blocking, Blocking], ids=["sync", "async"])


def raised(call: Callable[..., Any], *given: Any, **named: Any) -> RegistryError:
    """The error that a call raises."""
    with pytest.raises(RegistryError) as caught:
        call(*given, **named)
    return caught.value
