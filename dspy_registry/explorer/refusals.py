"""How a request is refused: under `/api/` always as JSON, in the form that the command line has too; else as text."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from dspy_registry.cli.console import encode_json


def is_for_programs(path: str) -> bool:
    """Whether who asks for this path expects JSON."""
    return path == "/api" or path.startswith("/api/")


def error(kind: str, message: str, remedy: str = "") -> dict[str, Any]:
    """An error as JSON has it."""
    return {"error": {"type": kind, "message": message, "remedy": remedy}}


async def refuse(
    scope: Any,
    send: Any,
    status: int,
    kind: str,
    message: str,
    remedy: str = "",
    headers: Collection[tuple[bytes, bytes]] = (),
) -> None:
    """Answer a request before the application has seen it."""
    if is_for_programs(scope["path"]):
        media, body = b"application/json", encode_json(error(kind, message, remedy))
    else:
        media, body = b"text/plain; charset=utf-8", f"{message} {remedy}".strip().encode() + b"\n"
    head = [(b"content-type", media), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
