"""A WSGI service whose every request is one reported call: `gunicorn tests.support.wsgi_service:app`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dspy_registry import Registry, UsageReporter

registry = Registry()
reporter = UsageReporter(interval=3600)  # nothing is sent until the end


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/call":
        reporter.record("dspy.Predict", 1.0)
    timeout = registry.routing_recommendation("dspy.Predict").timeout
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(timeout).encode()]
