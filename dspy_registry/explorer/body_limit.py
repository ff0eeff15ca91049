"""Refuses requests whose body is too large, before anything reads it into memory."""

from __future__ import annotations

from typing import Any

from dspy_registry.explorer.reported_calls import MOST_BYTES


class BodyLimit:
    """The application, with bodies of at most MOST_BYTES. A longer one ends as if its sender had gone away."""

    def __init__(self, app: Any, most: int = MOST_BYTES) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length) > self._most:
            body = f"a body may have at most {self._most:,} bytes.\n".encode()
            head = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 413, "headers": head})
            await send({"type": "http.response.body", "body": body})
            return
        taken = 0

        async def receiving() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return {"type": "http.disconnect"} if taken > self._most else message

        await self._app(scope, receiving, send)
