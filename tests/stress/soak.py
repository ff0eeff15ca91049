"""Everything at once for minutes: clients, manifests, usage, snapshots; the daemon is killed every few seconds."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from dspy_registry import ModuleInfo, Registry, RegistryWriter, UsageReporter, WriterClient
from tests.stress.apart import Apart, asked
from tests.stress.faults import Case, Fault, Plan
from tests.stress.oracle import check_finds
from tests.support import ROOT
from tests.support.command import COMMAND

_CLIENTS = 16
_PROCESSES = 4
_READERS = 2
_PATIENT = 120.0
_KILLED_EVERY = 5.0
_SEGMENT = 30.0
"""Seconds of one registry; then it is looked over, and the next one begins."""


@contextmanager
def _daemon(folder: Path, manifests: Path) -> Iterator[subprocess.Popen[str]]:
    """`dspy-registry serve` with a folder of manifests, once it serves."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), os.environ.get("PYTHONPATH", "")))}
    process = subprocess.Popen(
        [*COMMAND, "serve", "--path", str(folder), "--manifests", str(manifests), "--log-level", "warning"],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    try:
        while not _answers(folder) and process.poll() is None:
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.communicate()


def _answers(folder: Path) -> bool:
    try:
        with WriterClient(folder, timeout=5.0) as client:
            client.status()
    except Exception:
        return False
    return True


# The processes


def _clients(folder: Path, first: int) -> Any:
    """Threads, each with a module whose versions it counts; and a reporter that counts calls. Says what it came to."""

    def work(say: Any, hear: Any) -> None:
        is_over, reached, failed = threading.Event(), {}, []

        def register(number: int) -> None:
            try:
                register_on(number)
            except Exception as error:
                failed.append(f"client {number}: {type(error).__name__}: {error}")

        def register_on(number: int) -> None:
            with WriterClient(folder, timeout=_PATIENT) as client:
                version = 0
                while not is_over.is_set():
                    info = ModuleInfo(f"soak.M{number}", category=f"c{version % 5}", estimated_duration=version)
                    client.register_module(info, expected_version=version)
                    version += 1
                    reporter.record(f"soak.M{number}", 1.0)
                reached[number] = version

        reporter = UsageReporter(folder, interval=0.3)
        numbers = range(first, first + _CLIENTS // _PROCESSES)
        threads = [threading.Thread(target=register, args=(number,)) for number in numbers]
        hear()  # there is a daemon: who was never connected is told at once that there is none
        for thread in threads:
            thread.start()
        hear()
        is_over.set()
        for thread in threads:
            thread.join()
        until = time.monotonic() + _PATIENT
        while not reporter.flush(5.0) and time.monotonic() < until:
            time.sleep(0.1)
        say({"error": failed} if failed else reached)

    return work


def _reader(folder: Path) -> Any:
    """Revisions never go back; a snapshot is one revision: no module is newer than it, and the log has no gap."""

    def work(say: Any, hear: Any) -> None:
        is_over = threading.Event()
        threading.Thread(target=lambda: (hear(), is_over.set()), daemon=True).start()
        last, looked, durations = 0, 0, dict.fromkeys(range(_CLIENTS), -1)
        with Registry(folder) as registry:
            while not is_over.is_set():
                revision = registry.revision
                assert revision >= last, f"revision {revision} after {last}"
                for number, before in durations.items():
                    info = registry.get(f"soak.M{number}")
                    value = info.estimated_duration if info else -1
                    assert value >= before, f"M{number} went from {before} to {value}"
                    durations[number] = value
                with registry.snapshot() as snapshot:
                    for name in snapshot:
                        assert snapshot.describe(name).provenance.revision <= snapshot.revision
                    log = [change.revision for change in snapshot.changes_since(max(revision - 50, 0))]
                    assert log == list(range(snapshot.revision - len(log) + 1, snapshot.revision + 1))
                    last = snapshot.revision
                looked += 1
        say(looked)

    return work


def _change_manifests(manifests: Path, is_over: threading.Event, chance: random.Random) -> None:
    """Write, replace, break and remove manifests; the last one is sound."""
    number = 0
    while not is_over.is_set():
        number += 1
        path = manifests / f"m{chance.randrange(4)}.toml"
        kind = chance.randrange(4)
        if kind == 0:
            path.unlink(missing_ok=True)
        elif kind == 1:
            path.write_text("[[modules]\nbroken")
        else:
            temporary = manifests / ".new"
            temporary.write_text(f'[[modules]]\nname = "file.{path.stem}"\nestimated_duration = {number}\n')
            temporary.replace(path)
        is_over.wait(0.1)
    for path in manifests.glob("*.toml"):
        path.unlink()
    (manifests / "last.toml").write_text('[[modules]]\nname = "file.Last"\n')


def _played(room: Path, chance: random.Random, seconds: float) -> tuple[list[str], int]:
    folder, manifests = room / "registry", room / "manifests"
    manifests.mkdir()
    with RegistryWriter(folder):
        pass
    firsts = range(0, _CLIENTS, _CLIENTS // _PROCESSES)
    clients = [Apart(_clients(folder, first)) for first in firsts]
    readers = [Apart(_reader(folder)) for _ in range(_READERS)]
    try:
        return _judged(folder, manifests, clients, readers, chance, seconds)
    finally:
        for process in (*clients, *readers):
            process.end()


def _judged(
    folder: Path, manifests: Path, clients: list[Apart], readers: list[Apart], chance: random.Random, seconds: float
) -> tuple[list[str], int]:
    is_over, problems, until = threading.Event(), [], time.monotonic() + seconds
    writing = threading.Thread(target=_change_manifests, args=(manifests, is_over, chance))
    writing.start()
    is_first = True
    while time.monotonic() < until:
        with _daemon(folder, manifests) as process:
            for client in clients if is_first else ():
                client.tell("begin")
            is_first = False
            is_over.wait(min(_KILLED_EVERY, max(0.1, until - time.monotonic())))
            if process.poll() is not None:
                problems.append(f"the daemon ended with {process.returncode}")
                break
    with _daemon(folder, manifests):
        is_over.set()
        writing.join()
        reached = _told(clients, problems)
        looked = _told(readers, problems)
        _await_last(folder, problems)
    if len(looked) == _READERS and 0 in looked:
        problems.append("a reader never looked")
    problems += _compared(folder, {int(number): version for each in reached for number, version in each.items()})
    return problems[:6] + check_finds(folder), sum(version for each in reached for version in each.values())


def _told(processes: list[Apart], problems: list[str]) -> list[Any]:
    found = []
    for process in processes:
        process.tell(0)
    for process in processes:
        said = process.hear(2 * _PATIENT)
        status = process.wait()
        if status or said is None or (isinstance(said, dict) and "error" in said):
            problems.append(f"a process ended with {status}: {said}")
        else:
            found.append(said)
    return found


def _await_last(folder: Path, problems: list[str]) -> None:
    until = time.monotonic() + _PATIENT
    with Registry(folder) as registry:
        while "file.Last" not in registry:
            if time.monotonic() > until:
                problems.append("the last manifest was never taken in")
                return
            time.sleep(0.05)


def _compared(folder: Path, reached: dict[int, int]) -> list[str]:
    problems = []
    with Registry(folder) as registry:
        for number, version in reached.items():
            name = f"soak.M{number}"
            stored = registry.describe(name) if version else None
            if stored and (stored.provenance.version, stored.info.estimated_duration) != (version, version - 1):
                problems.append(f"{name}: {version} versions were acknowledged, {stored} is there")
            if (calls := registry.usage(name).calls) != version:
                problems.append(f"{name}: {version} calls were made, {calls} are counted")
        files = sorted(name for name in registry if name.startswith("file."))
        if files != ["file.Last"]:
            problems.append(f"of manifests {files} is left")
    return problems


def _tries(plan: Plan) -> Iterator[Case]:
    sys.stdout.flush()
    for key in plan.cases():
        room = plan.folder(f"soak-{key}")
        room.mkdir()
        left = _SEGMENT if plan.seconds is None else plan.seconds - (time.monotonic() - plan.began)
        seconds = max(3.0, min(_SEGMENT, left))
        chance = plan.chance(key)
        told, wrong = asked(partial(_played, room, chance, seconds), seconds + 6 * _PATIENT)
        problems, changes = ([wrong], 0) if wrong else told
        yield Case(key, tuple(problems), "registries", tries=changes)
        shutil.rmtree(room)


FAULT = Fault(
    "soak",
    "16 clients, manifests, usage, snapshots; daemon killed every 5 s",
    "registrations",
    100,
    100,
    _tries,
    seconds=600.0,
)
