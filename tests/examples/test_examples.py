"""The examples as their readers run them; and the service under load while everything around it is restarted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("httpx")
pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")

import httpx

from dspy_registry import Registry, RegistryWriter
from tests.support import ROOT
from tests.support.broker import broker, needs_broker
from tests.support.metrics import Measured, Values, measured_daemon
from tests.support.services import free_port, serving

EXAMPLES = ROOT / "examples"
NAMES = ("acme.Quick", "acme.Thorough")


@pytest.fixture
def served(registry_folder: Path) -> Path:
    """A registry, for a daemon that takes the examples' manifests."""
    with RegistryWriter(registry_folder):
        pass
    return registry_folder


def wait_for_modules(path: Path) -> None:
    """Until the manifests are in force."""
    with Registry(path) as registry:
        while NAMES[0] not in registry:
            time.sleep(0.02)


def counted(path: Path) -> int:
    """The calls of both modules that have arrived."""
    with Registry(path) as registry:
        return sum(usage.calls for usage in registry.usages() if usage.name in NAMES)


def measured(values: Values) -> float:
    return sum(values.get(("dspy_registry_calls_total", frozenset({("module", name)})), 0.0) for name in NAMES)


def manifests() -> tuple[str, str]:
    return "--manifests", str(EXAMPLES / "manifests")


def test_the_batch_job_answers_every_line(served: Path, tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("Is it?\n\nWas it?\n")
    with measured_daemon(served, *manifests()) as daemon:
        wait_for_modules(served)
        done = subprocess.run(
            [sys.executable, "-W", "error", str(EXAMPLES / "batch_job.py"), str(questions)],
            capture_output=True,
            text=True,
            timeout=90,
            env={**os.environ, "DSPY_REGISTRY": str(served)},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split("?")[0] for line in done.stdout.splitlines()] == ["Is it", "Was it"]
        assert counted(served) == measured(daemon.values()) == 2


def test_the_service_answers_and_its_last_calls_are_counted(served: Path, tmp_path: Path) -> None:
    port = free_port()
    command = [
        "uvicorn",
        "--app-dir",
        str(EXAMPLES),
        "fastapi_service:app",
        "--port",
        str(port),
        "--log-level",
        "warning",
    ]
    with measured_daemon(served, *manifests()) as daemon:
        wait_for_modules(served)
        with serving(command, served, tmp_path / "server.log", port) as server:
            server.wait_until_up()
            answer = server.get("/answer?question=Really?").json()
            assert answer["module"] in NAMES
            assert answer["answer"].startswith("Really?")
            assert server.end(signal.SIGTERM) in (0, -signal.SIGTERM), server.log.read_text()
        assert counted(served) == measured(daemon.values()) == 1


@needs_broker
@pytest.mark.full
def test_the_worker_answers_and_its_last_calls_are_counted(served: Path, tmp_path: Path) -> None:
    pytest.importorskip("celery")
    code = """
import json
from celery_worker import answer
asked = [answer.delay(f"Is it {n}?") for n in range(8)]
print(json.dumps([each.get(timeout=90)["module"] for each in asked]))
"""
    paths = os.pathsep.join((str(EXAMPLES), str(ROOT)))
    command = ["celery", "--workdir", str(EXAMPLES), "-A", "celery_worker", "worker", "-l", "warning", "-c", "2"]
    with pytest.MonkeyPatch.context() as patch, broker(tmp_path) as address:
        patch.setenv("CELERY_BROKER", address)
        patch.setenv("DSPY_REGISTRY", str(served))
        with measured_daemon(served, *manifests()) as daemon:
            wait_for_modules(served)
            with serving(command, served, tmp_path / "server.log") as server:
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    capture_output=True,
                    text=True,
                    timeout=100,
                    env={**os.environ, "PYTHONPATH": paths},
                )
                assert done.returncode == 0, done.stderr
                assert set(json.loads(done.stdout)) <= set(NAMES)
                assert server.end(signal.SIGTERM) == 0, server.log.read_text()
            assert counted(served) == measured(daemon.values()) == 8


@pytest.mark.full
def test_calls_counted_are_calls_made_whatever_is_restarted(served: Path, tmp_path: Path) -> None:
    """Under load: workers are replaced one by one, the daemon is killed and started again, the service is ended."""
    pytest.importorskip("gunicorn")
    port, calls = free_port(), tmp_path / "calls"
    app = "tests.support.counted_example:app"
    gunicorn = ["gunicorn", app, "-k", "uvicorn_worker.UvicornWorker", "-w", "2", "-b", f"127.0.0.1:{port}"]
    scraped: list[float] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COUNTED", str(calls))
        with measured_daemon(served, *manifests()) as first:
            wait_for_modules(served)
            with serving([*gunicorn, "--log-level", "warning"], served, tmp_path / "server.log", port) as server:
                server.wait_until_up()
                with asking(f"{server.url}/answer?question=So?") as load:
                    load.until(200)
                    former = children(server.process.pid)
                    server.process.send_signal(signal.SIGHUP)  # gunicorn replaces its workers
                    while former & children(
                        server.process.pid
                    ):  # they send their last calls: the daemon has to be there
                        time.sleep(0.05)
                    load.until(400)
                    scraped += scrapes(first, 2, calls)
                    first.kill()
                    load.until(600)
                    with measured_daemon(served, *manifests()) as second:
                        load.until(900)
                        scraped += scrapes(second, 5, calls)
                        load.stop()
                        assert server.end(signal.SIGTERM) == 0, server.log.read_text()
                        made = calls.stat().st_size
                        assert made >= 900
                        assert counted(served) == made, server.log.read_text()
                        scraped.append(measured(second.values()))
    assert scraped[-1] == made
    assert scraped == sorted(scraped)


def children(pid: int) -> set[str]:
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def scrapes(daemon: Measured, count: int, calls: Path) -> list[float]:
    """What the metrics say meanwhile: never more calls than were made by then."""
    found = []
    for _ in range(count):
        found.append(measured(daemon.values()))
        assert found[-1] <= calls.stat().st_size
        time.sleep(0.2)
    return found


class asking:
    """Threads that ask until they are told to stop. A refused connection is no answer: a worker may be closing."""

    def __init__(self, url: str, threads: int = 4) -> None:
        self._url = url
        self._answers = 0
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._running = [self._pool.submit(self._ask) for _ in range(threads)]

    def __enter__(self) -> asking:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stopping.set()
        self._pool.shutdown()
        for each in self._running:
            each.result()

    def until(self, answers: int) -> None:
        """Wait until so many were answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._answers >= answers or self._stopping.is_set(), 100)

    def _ask(self) -> None:
        with httpx.Client(timeout=60, headers={"connection": "close"}) as client:  # a worker waits for open ones to end
            while not self._stopping.is_set():
                try:
                    status = client.get(self._url).status_code
                except httpx.TransportError:
                    continue
                assert status == 200
                with self._changed:
                    self._answers += 1
                    self._changed.notify_all()
