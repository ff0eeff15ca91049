"""A Celery application whose every task is one reported call."""

from __future__ import annotations

import os

from celery import Celery

from dspy_registry import UsageReporter
from dspy_registry.integrations.celery import connect

address = os.environ["CELERY_BROKER"]
app = Celery("tests.support.celery_service", broker=address, backend=address)
reporter = UsageReporter(interval=3600)  # nothing is sent until the end
connect(flush_timeout=30)  # a busy machine must not decide what the tests count


@app.task
def call() -> int:
    reporter.record("dspy.Predict", 1.0)
    return os.getpid()
