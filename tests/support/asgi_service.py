"""A FastAPI service whose every request is one reported call: `uvicorn tests.support.asgi_service:app`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI

from dspy_registry import Registry, UsageReporter
from dspy_registry.integrations.fastapi import get_registry, health_routes, lifespan

reporter = UsageReporter(interval=3600)  # nothing is sent until the end


@asynccontextmanager
async def own(app: Any) -> AsyncIterator[dict[str, str]]:
    yield {"greeting": "hello"}


app = FastAPI(lifespan=lifespan(inner=own, flush_timeout=30))  # a busy machine must not decide what the tests count
app.include_router(health_routes())


@app.get("/call")
def call(registry: Annotated[Registry, Depends(get_registry)]) -> dict[str, int]:
    reporter.record("dspy.Predict", 1.0)
    return {"timeout": registry.routing_recommendation("dspy.Predict").timeout, "pid": os.getpid()}
