"""Writers killed at random instants, failpoints and system calls, while readers ask, are stopped and continued."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dspy_registry.writer.failpoints import NAMES
from tests.stress import copies
from tests.stress.faults import Case, Fault, Plan
from tests.stress.injection import injected, judged, write_on
from tests.stress.recording import can_record
from tests.support.histories import Observation

CALLS = (
    ("pwrite64", 40),
    ("writev", 14),
    ("pwritev", 14),
    ("fdatasync", 24),
    ("ftruncate", 2),
    ("rename", 3),
    ("fsync", 4),
    ("fallocate", 2),
    ("openat", 24),
    ("flock", 2),
    ("mmap", 8),
    ("mkdir", 1),
    ("fcntl", 20),
    ("write", 2),
)
_KILLS_OF_ONE_HISTORY = 40
_COMMITS_BETWEEN = 12


@contextmanager
def stopped_and_continued(pids: list[int], seed: int) -> Iterator[None]:
    """Meanwhile each process is stopped at random for a moment, again and again."""
    chance, is_over = random.Random(seed), threading.Event()

    def work() -> None:
        while not is_over.is_set():
            with suppress(ProcessLookupError):
                pid = chance.choice(pids)
                os.kill(pid, signal.SIGSTOP)
                time.sleep(chance.random() * 0.02)
                os.kill(pid, signal.SIGCONT)
            time.sleep(chance.random() * 0.01)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _history(plan: Plan, key: str, kills: int) -> Case:
    """Readers record all they hear while one writer after the other is killed; then they are judged."""
    chance = plan.chance(key)
    folder = plan.folder(key.replace("/", "-")) / "registry"
    folder.parent.mkdir(parents=True)
    seed = chance.randrange(10**6)
    killed, problems = 0, []
    try:
        with Observation(folder, seed, kills * _COMMITS_BETWEEN, (8192, 4)) as observation:
            readers = [reader.pid for reader in observation._readers]
            with stopped_and_continued(readers, seed):
                for _ in range(kills):
                    killed += _kill_once(observation, chance)
                while not observation.is_done:
                    _end_well(observation)
            observation.finish()
    except AssertionError as error:
        problems.append(f"the history is wrong: {error}")
    except Exception as error:
        problems.append(f"{type(error).__name__}: {error}")
    return Case(key, tuple(problems), "histories judged", tries=killed)


def _kill_once(observation: Observation, chance: random.Random) -> bool:
    point = chance.choice(("", "", *NAMES))
    if point:
        status = observation.let_write(_COMMITS_BETWEEN, f"{point}=kill@{chance.randint(1, _COMMITS_BETWEEN)}")
    else:
        slow = chance.choice(("", "before_commit=sleep:1", "before_even_word=sleep:1"))
        kill_after = chance.randrange(1, _COMMITS_BETWEEN)
        status = observation.let_write(_COMMITS_BETWEEN, slow, kill_after=kill_after)
    return status == -signal.SIGKILL


def _end_well(observation: Observation) -> None:
    status = observation.let_write(10**9)
    assert status == 0, f"a writer that nobody killed ended with {status}"


def _copying(plan: Plan, key: str) -> Case:
    """A backup or a restore that is killed at a call."""
    chance = plan.chance(key)
    kind = chance.choice(("backup", "restore"))
    call, most = chance.choice(copies.CALLS)
    number = chance.randint(1, most)
    problems, status = copies.copied(plan, kind, call, f"signal=SIGKILL:when={number}")
    if status not in (0, -signal.SIGKILL):
        problems.append(f"it ended with {status}")
    where = f"({kind}, at {call} number {number})"
    note = f"{kind} killed at a {call}" if status else f"not reached by a {kind}, {call}"
    return Case(key, tuple(f"{problem} {where}" for problem in problems), note, tries=1 if status else 0)


def _at_a_call(plan: Plan, key: str) -> Case:
    if int(key.rpartition("/")[2]) % 4 == 3:
        return _copying(plan, key)
    chance = plan.chance(key)
    folder = plan.folder("registry")
    call, most = chance.choice(CALLS)
    number = chance.randint(1, most)
    with injected(folder, call, f"signal=SIGKILL:when={number}", write_on(folder)) as child:
        said: list[Any] = child.heard()
        status = child.wait()
    problems = judged(folder, said)
    if status not in (0, -signal.SIGKILL):
        problems.append(f"it ended with {status}: {said[-1:]}")
    where = f"(at {call} number {number})"
    note = f"killed at a {call}" if status else f"not reached, {call}"
    return Case(key, tuple(f"{problem} {where}" for problem in problems), note, tries=1 if status else 0)


def _tries(plan: Plan) -> Iterator[Case]:
    """Half of the kills at system calls, half in histories."""
    if plan.only is not None:
        is_history = plan.only.startswith("history/")
        yield _history(plan, plan.only, _of_one(plan)) if is_history else _at_a_call(plan, plan.only)
        return
    number = calls = 0
    is_traceable = can_record()
    if not is_traceable:
        yield Case("calls", skipped="strace cannot trace here")
    while True:
        case = _history(plan, f"history/{number}", _of_one(plan))
        yield case
        number += 1
        done = 0
        while is_traceable and done < case.tries:
            at_call = _at_a_call(plan, f"call/{calls}")
            done += at_call.tries
            calls += 1
            yield at_call


def _of_one(plan: Plan) -> int:
    return min(_KILLS_OF_ONE_HISTORY, max(1, plan.count // 2))


FAULT = Fault(
    "killed_writer",
    "kill -9 at random instants, failpoints, system calls; readers stopped and continued",
    "kills",
    1_000,
    20,
    _tries,
)
