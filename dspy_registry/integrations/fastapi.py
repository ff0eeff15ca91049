"""The registry in a FastAPI (or Starlette) service: opened at start-up, handed to routes, closed with nothing lost.

    app = FastAPI(lifespan=lifespan())
    app.include_router(health_routes())

    @app.get("/timeout/{name}")
    def timeout(name: str, registry: Registry = Depends(get_registry)) -> int: ...

A server that is told to stop ends the lifespan first and then kills its own process by the same signal, so handlers of
`atexit` never run. What reporters still hold is therefore sent when the lifespan ends.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, Final

from dspy_registry.integrations.extras import needing
from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.errors import RegistryError
from dspy_registry.writer.client.reporter import FLUSH_AT_EXIT, flush_all

with needing("fastapi"):
    from fastapi import APIRouter, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse

__all__ = ["get_registry", "health_routes", "lifespan"]

_STATE: Final = "dspy_registry"

Lifespan = Callable[[Any], AbstractAsyncContextManager[Any]]


def lifespan(
    path: str | os.PathLike[str] | None = None,
    *,
    inner: Lifespan | None = None,
    flush_timeout: float = FLUSH_AT_EXIT,
) -> Lifespan:
    """A lifespan that opens the registry in `path` (None: $DSPY_REGISTRY, else the user's data directory).

    `inner` is the application's own lifespan, None: it has none; it runs inside this one, and its state is kept.
    When the service stops, the calls that every UsageReporter of this process still holds are sent, for at most
    `flush_timeout` seconds. Start-up raises what `Registry` raises.
    """

    @asynccontextmanager
    async def span(app: Any) -> AsyncIterator[Any]:
        registry = Registry(path)
        setattr(app.state, _STATE, registry)
        try:
            async with AsyncExitStack() as stack:
                yield await stack.enter_async_context(inner(app)) if inner is not None else None
        finally:
            await run_in_threadpool(flush_all, flush_timeout)
            registry.close()

    return span


async def get_registry(request: Request) -> Registry:
    """The service's Registry, for `Depends`. Raises RegistryError in an application without `lifespan`."""
    registry = getattr(request.app.state, _STATE, None)
    if not isinstance(registry, Registry):
        raise RegistryError(
            "this application has no registry.",
            remedy="Give it one: FastAPI(lifespan=dspy_registry.integrations.fastapi.lifespan()).",
        )
    return registry


def health_routes(prefix: str = "") -> APIRouter:
    """`/healthz`: the process answers. `/readyz`: its registry can be read, 503 with the reason when it cannot.

    Both answer with JSON, and to HEAD without it. The writer daemon need not run for a service to be ready: readers go
    on without it.
    """
    router = APIRouter(prefix=prefix, tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.head("/readyz", response_model=None, include_in_schema=False)
    @router.get("/readyz", response_model=None)
    async def readyz(request: Request) -> JSONResponse:
        return await run_in_threadpool(_readiness, request.app.state)

    return router


def _readiness(state: Any) -> JSONResponse:
    registry = getattr(state, _STATE, None)
    try:
        if registry is None:
            raise RegistryError("the service has not opened its registry.")
        with registry.snapshot() as snapshot:  # looks at the files now: a cached read goes on without them
            facts = {"status": "ok", "revision": snapshot.revision, "modules": len(snapshot)}
    except RegistryError as error:
        problem = {"type": type(error).__name__, "message": error.message, "remedy": error.remedy}
        return JSONResponse({"status": "unavailable", "error": problem}, status_code=503)
    return JSONResponse(facts)
