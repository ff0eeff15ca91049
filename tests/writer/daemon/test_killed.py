"""The daemon is killed and started again amid 64 clients."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import AsyncWriterClient, Registry, WriterClient
from tests.support.daemon_process import PATIENT, daemon, module
from tests.support.processes import Process, child, requests, say


def register_on_and_on(path: str, first: int, count: int) -> None:
    """Clients in threads, each with one module; every registration is right only if the one before landed once."""

    def work(number: int) -> None:
        with WriterClient(path, timeout=PATIENT) as client:
            for version in range(10_000_000):
                if enough.is_set():
                    say([number, version])
                    return
                client.register_module(module(f"acme.m{number}", category=f"c{version}"), expected_version=version)
                progress[number] = version + 1

    enough = threading.Event()
    progress: dict[int, int] = {}
    threads = [threading.Thread(target=work, args=(number,)) for number in range(first, first + count)]
    wait_for_the_word()
    for thread in threads:
        thread.start()
    tell_progress(progress, count)
    enough.set()
    for thread in threads:
        thread.join()


def wait_for_the_word() -> None:
    assert next(requests()) == "begin"


def tell_progress(progress: dict[int, int], count: int) -> None:
    """Until the parent wants no more. 0 while some have nothing: they may never have been connected yet."""
    for message in requests():
        if message == "end":
            return
        reached = list(progress.values())
        say(sum(reached) if len(reached) == count else 0)


def register_on_and_on_async(path: str, first: int, count: int) -> None:
    """The same with the asyncio client, each with several requests under way."""

    async def work(number: int) -> list[Any]:
        async with AsyncWriterClient(path, timeout=PATIENT) as client:
            version = 0
            while not enough.is_set():
                infos = [module(f"acme.m{number}", category=f"c{v}") for v in range(version, version + 5)]
                await asyncio.gather(
                    *(client.register_module(info, expected_version=version + n) for n, info in enumerate(infos))
                )
                version += 5
                progress[number] = version
            return [number, version]

    async def main() -> None:
        for outcome in await asyncio.gather(*(work(number) for number in range(first, first + count))):
            say(outcome)

    def listen() -> None:
        tell_progress(progress, count)
        enough.set()

    enough = threading.Event()
    progress: dict[int, int] = {}
    wait_for_the_word()
    listener = threading.Thread(target=listen)
    listener.start()
    asyncio.run(main())
    listener.join()


POINTS = ("before_odd_word", "before_commit", "before_even_word", "before_acknowledgement")


@pytest.mark.parametrize(
    "function", ["register_on_and_on", pytest.param("register_on_and_on_async", marks=pytest.mark.full)]
)
def test_killed_amid_64_clients_each_registration_takes_effect_once(registry_folder: Path, function: str) -> None:
    with (
        child(__name__, function, registry_folder, 0, 32) as one,
        child(__name__, function, registry_folder, 32, 32) as two,
    ):
        both = (one, two)
        with daemon(registry_folder) as served:
            for process in both:
                process.tell("begin")
                reach(process, 32)
            served.kill()
        for kills, point in itertools.product((3, 1, 7, 2), POINTS):
            with daemon(registry_folder, DSPY_REGISTRY_FAILPOINTS=f"{point}=kill@{kills}") as served:
                assert served.process.wait() == -signal.SIGKILL
        with daemon(registry_folder) as served:
            for process in both:
                reach(process, process.ask() + 32)
            versions = dict(outcome for process in both for outcome in end(process))
            assert served.end() == 0
    with Registry(registry_folder) as registry:
        assert {n: registry.describe(f"acme.m{n}").provenance.version for n in range(64)} == versions
    assert min(versions.values()) > 0


def reach(process: Process, registrations: int) -> None:
    """Wait until a child's clients have so many registrations acknowledged."""
    while process.ask() < registrations:
        pass


def end(process: Process) -> list[list[int]]:
    """Number and version of each module that a child's clients have registered."""
    process.tell("end")
    outcomes: list[list[int]] = [process.hear() for _ in range(32)]
    assert process.close() == 0
    return outcomes
