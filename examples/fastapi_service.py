"""A FastAPI service that lets the registry choose on every request, and loses no report when it is stopped.

DSPY_REGISTRY=/tmp/registry uvicorn --app-dir examples fastapi_service:app
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from programs import TARGETS

from dspy_registry import NoCandidateError, Registry, RouteFailedError, Router
from dspy_registry.integrations.fastapi import health_routes, lifespan


@asynccontextmanager
async def router(_: Any) -> AsyncIterator[dict[str, Any]]:
    """The service's router; it reports each attempt. `lifespan` sends the last reports when the service stops."""
    with Registry() as registry:
        yield {"router": Router(registry, TARGETS)}


app = FastAPI(title="Answers", lifespan=lifespan(inner=router))
app.include_router(health_routes())  # /healthz and /readyz


@app.get("/answer")
async def answer(question: str, request: Request) -> dict[str, Any]:
    """The answer of whichever module the registry chose, within two seconds."""
    try:
        result = await request.state.router.acall(
            "question_answering", arguments={"question": question}, deadline_ms=2_000
        )
    except (NoCandidateError, RouteFailedError) as error:
        raise HTTPException(503, error.message) from error
    return {"answer": result.value, "module": result.name, "version": result.version}
