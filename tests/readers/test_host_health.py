"""What a process knows of the host's health: what the daemon publishes, and what it saw itself without a daemon."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry.readers.registry import Registry
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow, Outcome
from dspy_registry.registry_store.health_file import FILE_BYTES, HEALTH_FILE, ensure_health_file
from dspy_registry.registry_store.host_health import ToldOutcome
from dspy_registry.writer.registry_writer import RegistryWriter
from tests.support.few_files import few_files
from tests.support.processes import run, say

NAME = "dspy.Predict"


def row(name: str = NAME, version: int = 1, *, seconds: float = 60.0) -> CircuitRow:
    now = boot_seconds()
    return CircuitRow(name, version, now, now + seconds, 1, 1, 5, "timeout")


def failures(name: str = NAME, version: int = 0, count: int = 5) -> list[ToldOutcome]:
    now = boot_seconds()
    return [ToldOutcome((name,), version, Outcome(now, now, "error"))] * count


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    RegistryWriter(tmp_path).close()
    return tmp_path


@pytest.fixture
def registry(folder: Path) -> Iterator[Registry]:
    with Registry(folder) as registry:
        yield registry


def test_without_a_file_all_are_healthy(registry: Registry) -> None:
    assert registry.health() == []
    known = registry.host_health.current()
    assert known.state(NAME, 1) == "closed"
    assert registry.host_health.current() is known  # an answer may be kept by it


def test_what_is_published_is_seen_by_the_word_alone(folder: Path, registry: Registry) -> None:
    file = ensure_health_file(folder)
    assert registry.health() == []
    health, before = registry.host_health, registry.host_health.known
    assert health.word[()] == before.word
    file.publish([row()])
    assert health.word[()] != before.word
    known = health.current()
    assert known is not before
    assert known.state(NAME, 1) == "open"
    assert known.state(NAME, 2) == "closed"
    assert known.next_change(boot_seconds()) == known.until(NAME, 1)
    assert [(entry.name, entry.version, entry.state) for entry in registry.health()] == [(NAME, 1, "open")]
    file.publish([])
    assert registry.health() == []


def test_a_replaced_file_is_found(folder: Path, registry: Registry) -> None:
    first = ensure_health_file(folder)
    assert registry.health() == []
    first.retire()
    ensure_health_file(folder).publish([row()])
    assert registry.host_health.current().state(NAME, 1) == "open"


def ask_with_few_files(path: str) -> None:
    folder = Path(path)
    file = ensure_health_file(folder)
    with Registry(folder) as registry:
        file.publish([row()])
        say(registry.host_health.current().state(NAME, 1))
        file.retire()
        with few_files(0):
            say([registry.host_health.current().state(NAME, 1), registry.route(names=(NAME,)).name])
        ensure_health_file(folder).publish([row()])
        say([entry.state for entry in registry.health()])


def test_too_many_open_files_make_nothing_unhealthy(folder: Path) -> None:
    assert run(__name__, "ask_with_few_files", folder) == ["open", ["closed", NAME], ["open"]]


def test_a_deleted_file_is_no_longer_read(folder: Path, registry: Registry) -> None:
    ensure_health_file(folder).publish([row()])
    assert registry.health()
    (folder / HEALTH_FILE).unlink()
    assert registry.health() == []


def test_a_damaged_file_makes_nothing_unhealthy(folder: Path, registry: Registry) -> None:
    ensure_health_file(folder).publish([row()])
    with (folder / HEALTH_FILE).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (FILE_BYTES - 4096))
    assert registry.health() == []
    assert registry.host_health.current().state(NAME, 1) == "closed"


def test_own_circuits_open_while_there_is_no_daemon(registry: Registry) -> None:
    health = registry.host_health
    before = health.current()
    health.count(failures(count=4))
    assert health.current() is before
    health.count(failures(count=1))
    assert health.known is not before
    assert health.current().state(NAME, 1) == "open"
    assert [(entry.name, entry.version) for entry in registry.health()] == [(NAME, 1)]  # not version 0
    health.leave_to_daemon()
    assert health.current().state(NAME, 1) == "closed"
    assert registry.health() == []


def test_own_circuits_stand_beside_what_is_published(folder: Path, registry: Registry) -> None:
    ensure_health_file(folder).publish([row(), row("dspy.ReAct")])
    health = registry.host_health
    health.count(failures("dspy.ChainOfThought", 1))
    assert {entry.name for entry in registry.health()} == {NAME, "dspy.ReAct", "dspy.ChainOfThought"}
    health.leave_to_daemon()
    assert {entry.name for entry in registry.health()} == {NAME, "dspy.ReAct"}


def test_own_circuits_follow_the_policy(registry: Registry) -> None:
    assert registry.policy(NAME).minimum_failures is None
    assert registry.host_health.rules(NAME).minimum_failures == 5


def test_registries_of_one_folder_share_what_the_process_saw(folder: Path, registry: Registry) -> None:
    with Registry(folder) as other:
        registry.host_health.count(failures())
        assert other.host_health.current().state(NAME, 1) == "open"
