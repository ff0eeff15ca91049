"""Forked children for scenes about forks: what one finds wrong is its exit status."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, RegistryWriter
from dspy_registry.registry_store.sharing import attach, detach

NAMES = [f"a.M{number}" for number in range(50)]


@pytest.fixture
def folder(registry_folder: Path) -> Path:
    """A registry with fifty modules."""
    with RegistryWriter(registry_folder) as writer:
        update(writer, 0)
    return registry_folder


def update(writer: RegistryWriter, duration: int) -> int:
    """Give all fifty modules another duration in one commit; the revision."""
    return writer.register_modules([ModuleInfo(name, estimated_duration=duration) for name in NAMES])


def fork(work: Callable[[], object]) -> int:
    """The pid of a forked child that does some work and ends, with status 1 if it went wrong."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    return pid


def await_all(*pids: int) -> None:
    """Wait for forked children, which must all have found everything right."""
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


def durations(queries: Any) -> set[int]:
    """Of all modules: one number, however many are asked, in a registry that is updated as a whole."""
    return {queries.get_module(name).estimated_duration for name in NAMES}


def slots(folder: str) -> list[int]:
    """The processes that hold reader slots, as often as they hold one."""
    environment = attach(Path(folder))
    try:
        with environment.reading():
            lines = environment.lmdb.readers().splitlines()
        return [int(line.split()[0]) for line in lines[1:] if line.strip()]
    finally:
        detach(environment)


def free_slots_of_the_dead(folder: str) -> None:
    """Let LMDB take back the reader slots of processes that are gone."""
    environment = attach(Path(folder))
    with environment.reading():
        environment.lmdb.reader_check()
    detach(environment)
