"""The integrations under real servers: what is stopped, restarted or recycled loses no call that it has counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Only an environment with the extra `servers` has these.
pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("celery")

import httpx

from tests.support import ROOT
from tests.support.broker import broker, needs_broker
from tests.support.command import daemon
from tests.support.reporting import calls
from tests.support.services import Server, free_port, serving
from tests.support.usage_helpers import wait_until

CALLS = 40
CELERY_SETTLES = 3.0
"""Seconds. Celery looks after its processes every 0.8 s. It may kill one that it has not seen begin when it stops."""
ASGI, WSGI = "tests.support.asgi_service:app", "tests.support.wsgi_service:app"
UVICORN_WORKER = ["-k", "uvicorn_worker.UvicornWorker"]


def uvicorn(port: int, *options: str) -> list[str]:
    return ["uvicorn", ASGI, "--port", str(port), "--log-level", "warning", *options]


def gunicorn(port: int, app: str, *options: str) -> list[str]:
    return ["gunicorn", app, "-b", f"127.0.0.1:{port}", "--log-level", "warning", *options]


SERVERS = {
    "uvicorn": lambda port: uvicorn(port),
    "uvicorn-4": lambda port: uvicorn(port, "--workers", "4"),
    "gunicorn-sync": lambda port: gunicorn(port, WSGI, "-w", "2"),
    "gunicorn-gthread-preload": lambda port: gunicorn(port, WSGI, "-k", "gthread", "--threads", "2", "--preload"),
    "gunicorn-uvicorn-preload": lambda port: gunicorn(port, ASGI, *UVICORN_WORKER, "-w", "2", "--preload"),
    "gunicorn-uvicorn-recycled": lambda port: gunicorn(port, ASGI, *UVICORN_WORKER, "--max-requests", "9"),
    "gunicorn-sync-recycled": lambda port: gunicorn(port, WSGI, "--max-requests", "9", "--preload"),
}


def answered(server: Server, path: str) -> None:
    """One request, repeated only when it did not reach a worker: one that is recycled closes its door first."""
    while True:
        try:
            assert server.get(path).status_code == 200
        except (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError):
            continue
        return


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.full) if "-" in kind else kind for kind in SERVERS]
)
def test_a_server_that_is_told_to_stop_sends_what_its_workers_hold(
    kind: str, seeded_registry: Path, tmp_path: Path
) -> None:
    port = free_port()
    path = "/call"
    with daemon(seeded_registry):
        with serving(SERVERS[kind](port), seeded_registry, tmp_path / "server.log", port) as server:
            server.wait_until_up()
            for _ in range(CALLS):
                answered(server, path)
            status = server.end(signal.SIGTERM)
            assert status in (0, -signal.SIGTERM), server.log.read_text()
        assert calls(seeded_registry) == CALLS, server.log.read_text()


def test_the_health_routes_tell_what_is_there(seeded_registry: Path, tmp_path: Path) -> None:
    port = free_port()
    with serving(uvicorn(port), seeded_registry, tmp_path / "server.log", port) as server:
        server.wait_until_up()
        assert server.get("/healthz").json() == {"status": "ok"}
        assert server.get("/readyz").json() == {"status": "ok", "revision": 1, "modules": 6}
        for path in ("/healthz", "/readyz"):
            head = httpx.head(f"http://127.0.0.1:{port}{path}", timeout=60, trust_env=False)
            assert (head.status_code, head.content) == (200, b"")
        (seeded_registry / "data.mdb").unlink()
        (seeded_registry / "revision").unlink()
        ready = server.get("/readyz")
        assert ready.status_code == 503
        assert httpx.head(f"http://127.0.0.1:{port}/readyz", timeout=60, trust_env=False).status_code == 503
        assert ready.json()["error"]["type"] == "RegistryNotFoundError"


def test_a_service_without_a_registry_does_not_start(tmp_path: Path) -> None:
    port = free_port()
    with serving(uvicorn(port), tmp_path / "none", tmp_path / "server.log", port) as server:
        assert server.process.wait(60) != 0
        assert "RegistryNotFoundError" in server.log.read_text()


@needs_broker
@pytest.mark.full
@pytest.mark.parametrize("options", [["--pool", "prefork", "-c", "2"], ["--pool", "solo"]])
def test_a_celery_worker_sends_what_its_processes_hold(
    options: list[str], seeded_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with celery_worker(options, seeded_registry, tmp_path, monkeypatch):
        assert len(asked_of_celery(seeded_registry, CALLS)) >= 1
        time.sleep(CELERY_SETTLES)
    assert calls(seeded_registry) == CALLS


@needs_broker
@pytest.mark.full
def test_celerys_recycled_processes_send_what_they_hold(
    seeded_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each ends behind its third call. One that holds calls while the worker stops may be killed by Celery."""
    options = ["--pool", "prefork", "-c", "1", "--max-tasks-per-child", "3"]
    with celery_worker(options, seeded_registry, tmp_path, monkeypatch):
        assert len(asked_of_celery(seeded_registry, 39)) >= 1
        wait_until(lambda: calls(seeded_registry) == 39, "the calls of the last process")


@contextmanager
def celery_worker(
    options: list[str], registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """A worker that must end well when it is asked to, and a daemon beside it."""
    command = ["celery", "-A", "tests.support.celery_service", "worker", "-l", "warning", *options]
    with broker(tmp_path) as address, daemon(registry):
        monkeypatch.setenv("CELERY_BROKER", address)
        with serving(command, registry, tmp_path / "server.log") as server:
            yield
            assert server.end(signal.SIGTERM) == 0, server.log.read_text()


def asked_of_celery(registry: Path, count: int) -> list[int]:
    """The processes that carried out `count` tasks."""
    code = f"""
import json
from tests.support.celery_service import call
asked = [call.delay() for _ in range({count})]
print(json.dumps(sorted({{each.get(timeout=90) for each in asked}})))
"""
    paths = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "DSPY_REGISTRY": str(registry), "PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, env=environment)
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout)
    return found
