"""What was read was committed (I21): readers that are stopped and continued at any instruction, beside killed writers.

LMDB gives a reader that is stopped within `begin` the roots of a commit that is not visible yet. Its next read then
finds an older state, and if the writer is killed it finds that state for long. So what goes back gives it away.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter
from tests.support.histories import ACKNOWLEDGED, DONE, STARTED, Observation, counters
from tests.support.processes import Process, child, say
from tests.support.stops import forgetting_meta_pages, stopped_at_random
from tests.support.usage_helpers import batches, merge

NAME = "a.B"
Look = Callable[[Registry], Iterator[int]]

# In processes of their own


def write(folder: str, shared: str, makes_revisions: bool) -> None:
    """Numbered commits until it is killed; what was started and acknowledged survives it in `shared`."""
    numbers = counters(shared)
    with RegistryWriter(folder) as writer, Registry(folder) as registry:
        while not numbers[DONE]:
            if makes_revisions:
                number = registry.get_module(NAME).estimated_duration + 1
                numbers[STARTED] = number
                writer.register_module(ModuleInfo(NAME, estimated_duration=number))
            else:
                number = registry.usage(NAME).calls + 1
                numbers[STARTED] = number
                merge(writer, batches([(NAME, 1.0)]))
            numbers[ACKNOWLEDGED] = number


def first_reads(registry: Registry) -> Iterator[int]:
    while True:
        yield registry.get_module(NAME).estimated_duration


def snapshots(registry: Registry) -> Iterator[int]:
    while True:
        with registry.snapshot() as snapshot:
            yield snapshot.get_module(NAME).estimated_duration


def descriptions(registry: Registry) -> Iterator[int]:
    while True:
        yield registry.describe(NAME).info.estimated_duration


def calls(registry: Registry) -> Iterator[int]:
    while True:
        yield registry.usage(NAME).calls


def calls_of_all(registry: Registry) -> Iterator[int]:
    while True:
        yield registry.usages()[0].calls


LOOKS: dict[str, Look] = {look.__name__: look for look in (first_reads, snapshots, descriptions, calls, calls_of_all)}


def read(folder: str, shared: str, kind: str) -> None:
    """Look until all is done; say what went back, was older than acknowledged, or newer than started."""
    numbers, newest, wrong = counters(shared), 0, []
    with Registry(folder, cache_size=0) as registry:
        say("ready")
        looks, forget = LOOKS[kind](registry), forgetting_meta_pages(Path(folder))
        while not numbers[DONE]:
            acknowledged = numbers[ACKNOWLEDGED]
            forget()
            seen = next(looks)
            if not max(newest, acknowledged) <= seen <= numbers[STARTED]:
                wrong.append([newest, acknowledged, seen, numbers[STARTED]])
            newest = max(newest, seen)
    say(wrong)


# In the test


def watch(folder: Path, kinds: tuple[str, ...], seconds: float) -> list[object]:
    """What readers saw that was wrong, while writers commit and are killed for so long."""
    shared = folder.with_suffix(".shared")
    shared.write_bytes(bytes(4096))
    numbers, chance = counters(shared), random.Random(1)
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo(NAME, estimated_duration=1))
        merge(writer, batches([(NAME, 1.0)]))
    makes_revisions = not kinds[0].startswith("calls")
    numbers[ACKNOWLEDGED] = numbers[STARTED] = 1
    until = time.monotonic() + seconds
    with ExitStack() as stack:
        readers: list[Process] = [stack.enter_context(child(__name__, "read", folder, shared, kind)) for kind in kinds]
        assert {reader.hear() for reader in readers} == {"ready"}
        with stopped_at_random(reader.pid for reader in readers):
            while time.monotonic() < until:
                with child(__name__, "write", folder, shared, makes_revisions) as writing:
                    acknowledged = numbers[ACKNOWLEDGED]
                    while numbers[ACKNOWLEDGED] < acknowledged + 5 and time.monotonic() < until:
                        time.sleep(0.001)
                    time.sleep(chance.uniform(0, 1.0))
                    writing.kill()
        numbers[DONE] = 1
        return [wrong for reader in readers for wrong in reader.hear()]


@pytest.mark.parametrize(
    "kinds",
    [("first_reads",) * 3, ("snapshots", "snapshots", "descriptions"), ("calls", "calls", "calls_of_all")],
    ids=["first reads", "snapshots", "commits without revision"],
)
@pytest.mark.parametrize(
    "seconds", [1.0, pytest.param(6.0, marks=pytest.mark.full), pytest.param(60.0, marks=pytest.mark.stress)]
)
def test_i21_what_was_read_was_committed(registry_folder: Path, kinds: tuple[str, ...], seconds: float) -> None:
    assert watch(registry_folder, kinds, seconds) == []


@pytest.mark.parametrize(("commits", "kills"), [(30, 2), pytest.param(3000, 100, marks=pytest.mark.stress)])
def test_i21_histories_of_readers_that_are_stopped_are_right(registry_folder: Path, commits: int, kills: int) -> None:
    chance = random.Random(2)
    with Observation(registry_folder, 21, commits, (8192, 0)) as observation:
        with stopped_at_random(observation.pids):
            for _ in range(kills):
                observation.let_write(commits, kill_after=chance.randrange(1, max(2, commits // kills)))
            while not observation.is_done:
                assert observation.let_write(commits) == 0
        observation.finish()
