"""A Celery worker whose tasks call what the registry chooses. Its broker is a folder, so that nothing else has to run.

CELERY_FOLDER=/tmp/queue DSPY_REGISTRY=/tmp/registry celery --workdir examples -A celery_worker worker
"""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from programs import TARGETS

from dspy_registry import Registry, Router
from dspy_registry.integrations.celery import connect

folder = Path(os.environ.get("CELERY_FOLDER", "/tmp/dspy-registry-queue"))
for name in ("queue", "control", "results"):
    (folder / name).mkdir(parents=True, exist_ok=True)

app = Celery("celery_worker", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
}
connect()  # sends what a process still holds before it ends

router = Router(Registry(), TARGETS)  # made once: it works in the forked processes of the pool


@app.task
def answer(question: str) -> dict[str, str]:
    """The answer, and the module that gave it."""
    result = router.call("question_answering", arguments={"question": question})
    return {"answer": result.value, "module": result.name}
