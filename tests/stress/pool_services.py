"""What the pools serve: `app` for WSGI, `asgi` for ASGI. Opened when it is imported: before the workers are forked."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from dspy_registry import Registry, UsageReporter

NAME = "a.B"

registry = Registry()
registry.get_module(NAME)
reporter = UsageReporter(interval=0.2)


def answer() -> list[int]:
    """This process, the value by the cache, and after that the value by a snapshot."""
    reporter.record(NAME, 1.0)
    cached = registry.get_module(NAME).estimated_duration
    with registry.snapshot() as snapshot:
        return [os.getpid(), cached, snapshot[NAME].estimated_duration]


def app(_: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """For gunicorn's own workers."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(answer()).encode()]


async def asgi(scope: dict[str, Any], _: Any, send: Callable[[Any], Awaitable[None]]) -> None:
    """For uvicorn's workers."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": json.dumps(answer()).encode()})


# For multiprocessing: inherited by a fork, opened by whoever is spawned


def in_pool(_: int) -> list[int]:
    return answer()
