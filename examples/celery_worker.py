"""A Celery worker whose tasks call what the registry chooses. Tasks and answers go through Redis.

CELERY_BROKER=redis://localhost/0 DSPY_REGISTRY=/tmp/registry celery --workdir examples -A celery_worker worker
"""

from __future__ import annotations

import os

from celery import Celery
from programs import TARGETS

from dspy_registry import Registry, Router
from dspy_registry.integrations.celery import connect

broker = os.environ.get("CELERY_BROKER", "redis://localhost/0")
app = Celery("celery_worker", broker=broker, backend=broker)
connect()  # sends what a process still holds before it ends

router = Router(Registry(), TARGETS)  # made once: it works in the forked processes of the pool


@app.task
def answer(question: str) -> dict[str, str]:
    """The answer, and the module that gave it."""
    result = router.call("question_answering", arguments={"question": question})
    return {"answer": result.value, "module": result.name}
