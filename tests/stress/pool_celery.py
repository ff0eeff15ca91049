"""A Celery application whose broker is a folder; its prefork pool inherits the registry."""

from __future__ import annotations

import os

from celery import Celery

from tests.stress.pool_services import answer

folder = os.environ["CELERY_FOLDER"]
app = Celery("tests.stress.pool_celery", broker="filesystem://", backend=f"file://{folder}/results")
app.conf.broker_transport_options = {
    "data_folder_in": f"{folder}/queue",
    "data_folder_out": f"{folder}/queue",
    "control_folder": f"{folder}/control",
}


@app.task
def call() -> list[int]:
    return answer()
