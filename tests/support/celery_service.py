"""A Celery application whose every task is one reported call; its broker is a folder."""

from __future__ import annotations

import os

from celery import Celery

from dspy_registry import UsageReporter
from dspy_registry.integrations.celery import connect

folder = os.environ["CELERY_FOLDER"]
app = Celery("tests.support.celery_service", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
}
reporter = UsageReporter(interval=3600)  # nothing is sent until the end
connect(flush_timeout=30)  # a busy machine must not decide what the tests count


@app.task
def call() -> int:
    reporter.record("dspy.Predict", 1.0)
    return os.getpid()
