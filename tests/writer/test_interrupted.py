"""Exceptions out of signal handlers, as time limits of workers and Ctrl-C raise them, amid reads (I16)."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter
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
        environment = registry._environment
        assert environment is not None
        assert environment.in_flight == []


@pytest.mark.parametrize("cache_size", [0, 64])
@pytest.mark.parametrize("kind", each(2, ["modules", "unknown", "queries", "length", "usage"]))
def test_i16_an_interrupted_read_leaves_nothing_locked(registry_folder: Path, kind: str, cache_size: int) -> None:
    with RegistryWriter(registry_folder) as writer:
        writer.register_modules([ModuleInfo(f"a.M{number}") for number in range(MODULES)])
    run(__name__, "reads_amid_interrupts", registry_folder, kind, cache_size)


def forks_with_a_read_left_behind(folder: str) -> None:
    """What a handler's exception between two steps leaves in the list is not waited for, nor costs the child."""
    with Registry(folder) as registry:
        environment = registry._environment
        assert environment is not None
        environment.in_flight.append("left behind")
        pid = os.fork()
        if not pid:
            os._exit(0 if registry.get_module("predict").name == "dspy.Predict" else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert environment.in_flight == []
        with registry.snapshot() as snapshot:
            assert len(snapshot) == 6


def test_i16_a_fork_does_not_wait_for_a_read_that_was_interrupted(seeded_registry: Path) -> None:
    run(__name__, "forks_with_a_read_left_behind", seeded_registry)
