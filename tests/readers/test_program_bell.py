"""Workers build a program when it is published, before anybody looks it up, and end and fork as if they did not."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import Programs, Registry, RegistryWriter
from dspy_registry.integrations.dspy import publish
from dspy_registry.readers import waiting
from dspy_registry.readers.program_bell import _REST
from dspy_registry.registry_store import futex
from dspy_registry.registry_store.revision import RevisionFile
from tests.support.compiled_programs import ALLOW, NAME, Qa, compiled
from tests.support.health_helpers import until

pytestmark = pytest.mark.skipif(not futex.is_available(), reason="this system has no futex")

LIVE = f"{NAME}@live"
PATIENCE = 60


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as opened:
        yield opened


@pytest.fixture
def programs(writer: RegistryWriter, registry_folder: Path) -> Iterator[Programs]:
    with Registry(registry_folder) as registry:
        yield Programs(registry, ALLOW)


def send(writer: RegistryWriter, instructions: str, name: str = NAME) -> int:
    return publish(compiled(Qa(), instructions), name, client=writer, label="live").version


def serves(programs: Programs, version: int) -> bool:
    """Whether every name has it, without a look-up of any program."""
    return {status.serving for status in programs.status()} == {version}


def followers(registry: Registry) -> int:
    return len(waiting.waiter_of(registry._file, _REST)._sleepers)


def test_a_program_is_built_before_it_is_looked_up(writer: RegistryWriter, programs: Programs) -> None:
    other = "acme.Other"
    for name in (NAME, other):
        send(writer, "one", name)
        assert programs[f"{name}@live"] is not None
    for words in ("two", "three"):  # the second while the thread rests
        version, _ = (send(writer, words, name) for name in (NAME, other))
        until(lambda version=version: serves(programs, version))
    assert programs[LIVE].qa.signature.instructions == "three"


def test_a_name_that_means_nothing_any_longer_stops_no_other(writer: RegistryWriter, programs: Programs) -> None:
    send(writer, "one", "acme.Gone")
    send(writer, "one")
    assert None not in (programs["acme.Gone@live"], programs[LIVE])
    writer.unregister_module("acme.Gone")
    version = send(writer, "two")
    until(lambda: programs.status()[1].serving == version)


def test_a_bell_that_is_not_heard_costs_a_second(
    writer: RegistryWriter, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(writer, "one")
    assert programs[LIVE] is not None
    monkeypatch.setattr(RevisionFile, "raise_bell", lambda self: False)
    version = send(writer, "two")
    until(lambda: serves(programs, version))


def test_nobody_looks_for_programs_that_are_gone_or_closed(writer: RegistryWriter, registry_folder: Path) -> None:
    send(writer, "one")
    with Registry(registry_folder) as registry:
        kept, dropped = Programs(registry, ALLOW), Programs(registry, ALLOW)
        assert None not in (kept[LIVE], dropped[LIVE])
        assert followers(registry) == 2
        del dropped
        gc.collect()
        until(lambda: followers(registry) == 1)
    until(lambda: followers(registry) == 0)
    waiter = waiting.waiter_of(registry._file, _REST)
    until(lambda: waiter._thread is None)


def test_a_forked_child_builds_without_a_look_up_once_it_has_looked_up(
    writer: RegistryWriter, programs: Programs
) -> None:
    send(writer, "one")
    old = programs[LIVE]
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            assert programs[LIVE] is old  # what was built before the fork
            os.write(tell, b"ready")
            until(lambda: serves(programs, 2))
            status = 0
        finally:
            os._exit(status)
    assert os.read(told, 5) == b"ready"
    assert send(writer, "two") == 2
    until(lambda: serves(programs, 2))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


SCRIPT = """
import os, sys, dspy
from dspy_registry import Programs, Registry
programs = Programs(Registry(sys.argv[1]), ("tests.support",))
"""


def run(script: str, folder: Path) -> None:
    """In a process of its own, with every warning an error. It must say nothing on standard error."""
    command = [sys.executable, "-W", "error::DeprecationWarning:__main__", "-c", SCRIPT + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_ends_while_it_follows(writer: RegistryWriter, registry_folder: Path) -> None:
    send(writer, "one")
    run(f"programs['{LIVE}']", registry_folder)
    run(f"programs['{LIVE}']; programs._registry.close()", registry_folder)
    run(f"programs['{LIVE}']; del programs", registry_folder)


def test_a_process_forks_wherever_it_begins_to_follow(writer: RegistryWriter, registry_folder: Path) -> None:
    """Also from a signal's handler, which may run between any two lines. Both sides serve afterwards."""
    send(writer, "one")
    script = f"""
from dspy_registry.readers import program_bell
def fork(frame, event, argument):
    if frame.f_code.co_filename != program_bell.__file__:
        return None
    sys.settrace(None)
    child = os.fork()
    if child == 0:
        os._exit(0 if programs['{LIVE}'] is not None else 1)
    assert os.waitpid(child, 0)[1] == 0
    sys.settrace(fork)
    return fork
sys.settrace(fork)
found = programs['{LIVE}']
sys.settrace(None)
assert programs['{LIVE}'] is found
"""
    run(script, registry_folder)


def test_threads_that_look_up_at_once_follow_once(writer: RegistryWriter, programs: Programs) -> None:
    send(writer, "one")
    threads = [threading.Thread(target=programs.get, args=(LIVE,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert followers(programs._registry) == 1


def sent(folder: Path, instructions: str) -> int:
    """By a writer that opens the registry for it, as `dspy-registry program publish` without a daemon."""
    with RegistryWriter(folder) as writer:
        return publish(compiled(Qa(), instructions), NAME, client=writer, label="live").version


def test_another_writer_that_opens_ends_neither_what_serves_nor_the_building(registry_folder: Path) -> None:
    sent(registry_folder, "one")
    with Registry(registry_folder) as registry:
        programs = Programs(registry, ALLOW)
        first = programs[LIVE]
        RegistryWriter(registry_folder).close()
        assert programs[LIVE] is first
        for instructions in ("two", "three"):
            version = sent(registry_folder, instructions)
            until(lambda version=version: programs.status()[0].serving == version)


def test_a_registry_that_is_closed_while_a_program_is_built_logs_no_error(
    registry_folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, closed, load = threading.Event(), threading.Event(), Programs._load

    def late(self: Programs, *arguments: object) -> object:
        begun.set()
        assert closed.wait(PATIENCE)
        return load(self, *arguments)  # type: ignore[arg-type]

    sent(registry_folder, "one")
    with RegistryWriter(registry_folder) as writer:
        registry = Registry(registry_folder)
        programs = Programs(registry, ALLOW)
        assert programs[LIVE] is not None
        monkeypatch.setattr(Programs, "_load", late)
        publish(compiled(Qa(), "two"), NAME, client=writer, label="live")
        assert begun.wait(PATIENCE)
        registry.close()
        closed.set()
        until(lambda: not programs._builds)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
