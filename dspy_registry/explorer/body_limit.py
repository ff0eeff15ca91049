"""Refuses requests whose body is too large, before anything reads it into memory."""

from __future__ import annotations

from typing import Any

from dspy_registry.explorer.refusals import refuse
from dspy_registry.explorer.reported_calls import MOST_BYTES
from dspy_registry.registry_store.number_text import whole_number


class BodyLimit:
    """The application, with bodies of at most `most` bytes. What it says of a longer one is replaced by status 413."""

    def __init__(self, app: Any, most: int = MOST_BYTES) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = whole_number(dict(scope["headers"]).get(b"content-length", b"0").decode("latin-1"))
        if declared is None or declared > self._most:
            await self._refuse(scope, send)
            return
        await self._within(scope, receive, send)

    async def _within(self, scope: Any, receive: Any, send: Any) -> None:
        taken = 0
        has_begun = is_refused = False  # the answer: what has begun to be sent goes on

        async def receiving() -> Any:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return {"type": "http.disconnect"} if taken > self._most else message

        async def sending(message: Any) -> None:
            nonlocal has_begun, is_refused
            if has_begun or taken <= self._most:
                has_begun = True
                await send(message)
            elif not is_refused:
                is_refused = True
                await self._refuse(scope, send)

        await self._app(scope, receiving, sending)

    async def _refuse(self, scope: Any, send: Any) -> None:
        remedy = "Send it in several requests."
        message = f"a body may have at most {self._most:,} bytes."
        await refuse(scope, send, 413, "InvalidArgumentError", message, remedy)
