"""The registry in Celery workers: what their reporters still hold is sent when a worker process ends.

    from dspy_registry.integrations.celery import connect
    connect()

A process of the prefork pool ends without the handlers of `atexit`, when the worker stops and when it is recycled
(`--max-tasks-per-child`), and so would lose its last batch.

Celery itself may kill a process that it recycles at the moment when the worker stops. The calls that such a process has
not sent yet, those of its last interval, are lost.
"""

from __future__ import annotations

from typing import Any, Final

from dspy_registry.integrations.extras import needing
from dspy_registry.writer.client.reporter import FLUSH_AT_EXIT, flush_all

with needing("celery"):
    from celery.signals import worker_process_shutdown, worker_shutdown

__all__ = ["connect"]

_NAME: Final = "dspy_registry"


def connect(*, flush_timeout: float = FLUSH_AT_EXIT) -> None:
    """Send what every UsageReporter of a worker process holds before it ends, in at most `flush_timeout` seconds.

    Call it once, where the Celery application is made; a second call changes the time. It works with every pool.
    """

    def flush(**_: Any) -> None:
        flush_all(flush_timeout)

    for signal in (worker_process_shutdown, worker_shutdown):
        signal.disconnect(dispatch_uid=_NAME)
        signal.connect(flush, weak=False, dispatch_uid=_NAME)
