"""HEAD is answered as GET is, without the body."""

from __future__ import annotations

from typing import Any, Final

_KEY: Final = "dspy_registry.is_head"


def is_head(scope: Any) -> bool:
    """Whether a request that the application sees as GET is HEAD: an answer without an end must not begin."""
    return bool(scope.get(_KEY))


class HeadAsGet:
    """The application, which knows of GET only. FastAPI's routes, unlike Starlette's, refuse HEAD."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def sending(message: Any) -> None:
            if message["type"] != "http.response.body":
                await send(message)
            elif not message.get("more_body", False):
                await send({"type": "http.response.body", "body": b""})

        await self._app({**scope, "method": "GET", _KEY: True}, receive, sending)


def allowed(methods: str) -> str:
    """The value of an Allow header: where GET is answered, HEAD is."""
    known = methods.split(", ")
    return f"{methods}, HEAD" if "GET" in known and "HEAD" not in known else methods
