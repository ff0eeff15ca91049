"""Exceptions out of signal handlers, as time limits of workers and Ctrl-C raise them, amid reads (I16)."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import FrameType

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter
from dspy_registry.readers.cold_reads import ColdReads
from dspy_registry.registry_store.errors import ForkedSnapshotError
from dspy_registry.registry_store.in_flight import short_reads
from tests.support.processes import run
from tests.support.selection import each

INTERRUPTS = 1500
MODULES = 200


class Interrupted(Exception):
    """As Celery's SoftTimeLimitExceeded."""


def interrupt(*_: object) -> None:
    raise Interrupted


def with_interrupts(work: Callable[[int], object]) -> None:
    """Work on and on, interrupted again and again at any step."""
    chance = random.Random(1)
    signal.signal(signal.SIGALRM, interrupt)
    for _ in range(INTERRUPTS):
        with suppress(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 3e-4))
            for number in count():
                work(number)
    signal.signal(signal.SIGALRM, signal.SIG_IGN)


def reads_amid_interrupts(folder: str, kind: str, cache_size: int) -> None:
    with Registry(folder, cache_size=cache_size) as registry:
        works: dict[str, Callable[[int], object]] = {
            "modules": lambda number: registry.get_module(f"a.M{number % MODULES}"),
            "unknown": lambda number: registry.has_native(f"a.Other{number}"),
            "queries": lambda number: registry.find(capabilities=(f"c{number}",)),
            "length": lambda _: len(registry),
            "usage": lambda number: registry.usage(f"a.M{number % MODULES}"),
        }
        with_interrupts(works[kind])
        others: list[int] = []
        thread = threading.Thread(target=lambda: others.append(len(registry)), daemon=True)
        thread.start()
        thread.join(60)
        assert others == [MODULES + 6], "a thread waits for a gate that nobody is in"
        pid = os.fork()
        if not pid:
            os._exit(0 if registry.get_module("a.M1").name == "a.M1" else 1)
        assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("cache_size", [0, 64])
@pytest.mark.parametrize("kind", each(2, ["modules", "unknown", "queries", "length", "usage"]))
def test_i16_an_interrupted_read_leaves_nothing_locked(registry_folder: Path, kind: str, cache_size: int) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.register_modules([ModuleInfo(f"a.M{number}") for number in range(MODULES)])
    run(__name__, "reads_amid_interrupts", registry_folder, kind, cache_size)


def forks_within_a_read(folder: str, other: str) -> None:
    """A handler forks in the transaction of a read of the same thread, which cannot end before the fork."""
    children: list[int] = []

    def fork_inside(frame: FrameType, event: str, called: object) -> None:
        is_encode = event == "c_call" and getattr(called, "__name__", "") == "encode"
        if is_encode and frame.f_code in short_reads and not children:
            sys.setprofile(None)
            children.append(os.fork())
            if not children[0]:
                is_read = idle.get_module("dspy.ReAct").name == "dspy.ReAct"  # it was in no transaction
                with suppress(ForkedSnapshotError):  # as after a fork with an open snapshot
                    Registry(folder)
                    os._exit(1)
                os._exit(0 if is_read else 1)

    with Registry(folder) as registry, Registry(other) as idle:
        len(registry)  # only then are reads in flight
        len(idle)
        sys.setprofile(fork_inside)
        assert registry.get_module("dspy.Predict").name == "dspy.Predict"
        sys.setprofile(None)
        assert os.waitpid(children[0], 0)[1] == 0
        assert registry.get_module("dspy.ReAct").name == "dspy.ReAct"
        with registry.snapshot() as snapshot:
            assert len(snapshot) == 6


def test_i16_a_fork_within_a_read_of_its_own_thread_does_not_wait(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "other"):
        pass
    run(__name__, "forks_within_a_read", seeded_registry, str(tmp_path / "other"))


def forks_beside_a_read(folder: str, step: str) -> None:
    """A handler waits for the fork of another thread, before the transaction of the read or after it."""
    ended: list[int] = []

    def fork() -> None:
        child = os.fork()
        if not child:
            with suppress(ForkedSnapshotError):
                os._exit(0 if registry.get_module("dspy.ReAct").name == "dspy.ReAct" else 1)
            os._exit(2)
        ended.append(os.waitpid(child, 0)[1])

    def fork_beside(frame: FrameType, event: str, called: object) -> None:
        if frame.f_code is ColdReads._read_first.__code__ and step in (event, getattr(called, "__name__", "")):
            sys.setprofile(None)
            thread = threading.Thread(target=fork)
            thread.start()
            thread.join()

    with Registry(folder) as registry:
        len(registry)
        sys.setprofile(fork_beside)
        assert registry.get_module("dspy.Predict").name == "dspy.Predict"
        sys.setprofile(None)
        assert ended == [0]


@pytest.mark.parametrize("step", ["call", "crc32", "add"])
def test_i15_a_read_that_is_in_no_transaction_costs_no_child_its_registry(seeded_registry: Path, step: str) -> None:
    run(__name__, "forks_beside_a_read", seeded_registry, step)
