"""A Celery application whose prefork pool inherits the registry."""

from __future__ import annotations

import os

from celery import Celery

from tests.stress.pool_services import answer

app = Celery("tests.stress.pool_celery", broker=os.environ["CELERY_BROKER"], backend=os.environ["CELERY_RESULTS"])


@app.task
def call() -> list[int]:
    return answer()
