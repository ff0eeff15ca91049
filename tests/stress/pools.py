"""Pools of workers of every kind, forked after the registry was opened, recycled; the daemon is killed meanwhile."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import random
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, RegistryWriter, WriterClient
from tests.stress.apart import asked
from tests.stress.faults import Case, Fault, Plan
from tests.stress.oracle import check_finds
from tests.support import ROOT
from tests.support.daemon_process import daemon

NAME = "a.B"
_ASKERS = 4
_WORKERS = 3
_RECYCLED_AFTER = "200"
_PATIENT = 60.0
Ask = Callable[[], list[int]]


class Watch:
    """What was started and acknowledged, and what is wrong with the answers."""

    def __init__(self) -> None:
        self.started = self.acknowledged = 1
        self.problems: list[str] = []
        self.answers = 0
        self.is_over = threading.Event()

    def ask(self, ask: Ask) -> None:
        acknowledged = self.acknowledged
        _, cached, of_snapshot = ask()
        if not acknowledged <= cached <= of_snapshot <= self.started:
            bounds = f"{acknowledged} acknowledged before, {self.started} started"
            self.problems.append(f"cached {cached}, then snapshot {of_snapshot}: {bounds}")
        self.answers += 1

    def ask_on(self, ask: Ask) -> None:
        while not self.is_over.is_set():
            try:
                self.ask(ask)
            except ConnectionError:
                continue  # a worker that is recycled closes what it has accepted; the server's log tells of others
            except Exception as error:
                self.problems.append(f"a worker did not answer: {type(error).__name__}: {error}")
                return

    def write_on(self, folder: Path) -> None:
        """Through the kills of the daemon: each value takes effect once."""
        try:
            with WriterClient(folder, timeout=_PATIENT) as client:
                while not self.is_over.is_set():
                    self.started += 1
                    info = ModuleInfo(NAME, estimated_duration=self.started)
                    client.register_module(info, expected_version=self.started - 1)
                    self.acknowledged = self.started
                    time.sleep(0.002)
        except Exception as error:
            self.problems.append(f"the client: {type(error).__name__}: {error}")


def _played(folder: Path, kind: str, chance: random.Random, seconds: float) -> tuple[list[str], int]:
    os.environ["DSPY_REGISTRY"] = str(folder)
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo(NAME, estimated_duration=1))
    watch = Watch()
    with ExitStack() as stack:
        ask = stack.enter_context(_KINDS[kind](folder))
        threads = [threading.Thread(target=watch.ask_on, args=(ask,)) for _ in range(_ASKERS)]
        threads.append(threading.Thread(target=watch.write_on, args=(folder,)))
        _kill_daemons(folder, watch, threads, chance, seconds)
    with Registry(folder) as registry:
        stored = registry.describe(NAME)
        if stored.info.estimated_duration != watch.acknowledged or stored.provenance.version != watch.acknowledged:
            watch.problems.append(f"{watch.acknowledged} was acknowledged, {stored} is there")
        counted = registry.usage(NAME).calls
    if counted > watch.answers + _ASKERS:
        watch.problems.append(f"{watch.answers} calls were made, {counted} are counted")
    return watch.problems[:5] + check_finds(folder), watch.answers


def _kill_daemons(folder: Path, watch: Watch, threads: list[Any], chance: random.Random, seconds: float) -> None:
    until = time.monotonic() + seconds
    is_first = True
    while time.monotonic() < until and not watch.problems:
        with daemon(folder) as served:
            if is_first:
                for thread in threads:
                    thread.start()
            is_first = False
            watch.is_over.wait(min(chance.uniform(0.3, 2.0), max(0.1, until - time.monotonic())))
            served.kill()
    with daemon(folder) as served:
        watch.is_over.set()
        for thread in threads:
            thread.join(2 * _PATIENT)
            if thread.is_alive():
                watch.problems.append("a thread that asks or writes is stuck")
        if status := served.end():
            watch.problems.append(f"the daemon ended with {status}")


# The pools


@contextmanager
def _web(folder: Path, command: list[str]) -> Iterator[Ask]:
    from tests.support.services import free_port, serving

    port = free_port()
    log = folder.parent / "server.log"
    address = f"127.0.0.1:{port}"
    shared = ["--preload", "-w", str(_WORKERS), "-b", address, "--max-requests", _RECYCLED_AFTER, "--timeout", "120"]

    def ask() -> list[int]:
        with urllib.request.urlopen(f"http://{address}/", timeout=_PATIENT) as reply:
            found: list[int] = json.load(reply)
            return found

    with serving(["gunicorn", *shared, *command], folder, log, port) as server:
        server.wait_until_up("/")
        yield ask
        if (status := server.end()) not in (0, None):
            raise AssertionError(f"gunicorn ended with {status}: {log.read_text()[-800:]}")
    text = log.read_text()
    if "Traceback" in text or "was sent SIGSEGV" in text or "SIGKILL" in text:
        raise AssertionError(f"the server's log: {text[-1500:]}")


def _sync(folder: Path) -> Any:
    return _web(folder, ["tests.stress.pool_services:app"])


def _gthread(folder: Path) -> Any:
    return _web(folder, ["-k", "gthread", "--threads", "4", "tests.stress.pool_services:app"])


def _uvicorn(folder: Path) -> Any:
    return _web(folder, ["-k", UVICORN_WORKER, "tests.stress.pool_services:asgi"])


UVICORN_WORKER = (
    "uvicorn_worker.UvicornWorker" if importlib.util.find_spec("uvicorn_worker") else "uvicorn.workers.UvicornWorker"
)


@contextmanager
def _celery(folder: Path) -> Iterator[Ask]:
    from tests.support.broker import broker
    from tests.support.services import serving

    results = folder.parent / "results"
    results.mkdir()
    os.environ["CELERY_RESULTS"] = results.as_uri()
    lock = threading.Lock()

    def ask() -> list[int]:
        with lock:  # Celery's client is not made for threads that share a connection
            result = call.delay()
        found: list[int] = result.get(timeout=_PATIENT, interval=0.01)
        return found

    worker = ["-P", "prefork", "-c", str(_WORKERS), "--max-tasks-per-child", _RECYCLED_AFTER, "-l", "warning"]
    command = ["celery", "-A", "tests.stress.pool_celery", "worker", *worker]
    with broker(folder.parent) as os.environ["CELERY_BROKER"]:
        from tests.stress.pool_celery import app, call

        with serving(command, folder, folder.parent / "server.log") as server:
            ask()
            yield ask
            server.end()
        app.close()


def _multiprocessing(method: str) -> Callable[[Path], Any]:
    @contextmanager
    def pool(_: Path) -> Iterator[Ask]:
        from tests.stress.pool_services import in_pool

        context: Any = multiprocessing.get_context(method)
        with context.Pool(_WORKERS, maxtasksperchild=int(_RECYCLED_AFTER)) as workers:
            yield lambda: workers.apply_async(in_pool, (0,)).get(_PATIENT)
            workers.close()
            workers.join()

    return pool


_KINDS: dict[str, Callable[[Path], Any]] = {
    "gunicorn sync": _sync,
    "gunicorn gthread": _gthread,
    "gunicorn UvicornWorker": _uvicorn,
    "celery prefork": _celery,
    "multiprocessing fork": _multiprocessing("fork"),
    "multiprocessing forkserver": _multiprocessing("forkserver"),
    "multiprocessing spawn": _multiprocessing("spawn"),
}
_NEEDS = {"gunicorn": "gunicorn", "celery": "celery", "celery prefork": "redis", "UvicornWorker": "uvicorn"}
_SECONDS_EACH = 12.0


def _missing(kind: str) -> str:
    needed = [package for word, package in _NEEDS.items() if word in kind]
    absent = [package for package in (*needed, "httpx") if importlib.util.find_spec(package) is None]
    server = "redis-server" if "celery" in kind and shutil.which("redis-server") is None else ""
    return ", ".join(filter(None, (*absent, server)))


def _tries(plan: Plan) -> Iterator[Case]:
    kinds = list(_KINDS)
    seconds = _SECONDS_EACH if plan.seconds is None else min(_SECONDS_EACH, max(2.0, plan.seconds / len(kinds)))
    for key in plan.cases():
        kind = kinds[int(key) % len(kinds)]
        if missing := _missing(kind):
            yield Case(kind, skipped=f"{missing} is not installed")
            continue
        room = plan.folder(f"pool-{key}")
        room.mkdir()
        chance = plan.chance(key)
        told, wrong = asked(partial(_played, room / "registry", kind, chance, seconds), seconds + 5 * _PATIENT)
        problems, answers = ([wrong], 0) if wrong else told
        yield Case(key, tuple(f"{kind}: {problem}" for problem in problems), f"rounds of {kind}", tries=answers)
        if not problems:
            shutil.rmtree(room)


FAULT = Fault(
    "pools",
    "gunicorn (sync, gthread, UvicornWorker), Celery, multiprocessing; recycled; daemon killed",
    "answers",
    100,
    100,
    _tries,
    seconds=600.0,
)
