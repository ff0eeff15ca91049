"""A kept route rests on the published health, and one comparison of the revision file says whether it is still that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import Registry, RegistryWriter
from dspy_registry.readers.decisions import NOTHING_DECIDED
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.health_file import HealthFile, ensure_health_file
from dspy_registry.registry_store.layout import REVISION_FILE
from dspy_registry.registry_store.revision import RevisionFile
from tests.support.pauses import killed_at, paused_at

OURS = ("health_file.py", "revision.py")
FIRST, SECOND = "dspy.ChainOfThought", "dspy.ReAct"


@pytest.fixture
def registry(registry_folder: Path) -> Iterator[Registry]:
    """A registry that knows of a health file, in which nothing is open."""
    with RegistryWriter(registry_folder):
        pass
    ensure_health_file(registry_folder).publish([])
    with Registry(registry_folder) as found:
        yield found


def publish(folder: Path, *, is_open: bool) -> None:
    """As a daemon that has just started."""
    now = boot_seconds()
    rows = [CircuitRow(FIRST, 1, now, now + 600, 1, 1, 5, "error")] if is_open else []
    ensure_health_file(folder).publish(rows)


def count(registry: Registry) -> float:
    return RevisionFile(registry.path).health_count[()]


def published(folder: Path) -> bool:
    """Whether the circuit is open, for a process that looks now."""
    return bool(HealthFile(folder).read()[1])


def chosen(registry: Registry) -> str:
    return registry.route("reasoning").name


def test_a_list_in_force_moves_the_count_from_even_to_even(registry: Registry) -> None:
    before = count(registry)
    publish(registry.path, is_open=True)
    assert count(registry) == before + 2
    HealthFile(registry.path, writable=True).retire()
    assert count(registry) == before + 4
    assert before % 2 == 0


def test_i31_a_kept_route_is_what_the_file_says_wherever_a_daemon_died(registry: Registry) -> None:
    line, more, odd = 0, True, 0
    while more:
        assert chosen(registry) == (SECOND if published(registry.path) else FIRST)
        becomes_open = not published(registry.path)
        more = killed_at(line, lambda is_open=becomes_open: publish(registry.path, is_open=is_open), *OURS)
        assert chosen(registry) == (SECOND if published(registry.path) else FIRST), f"a death at line {line}"
        odd += count(registry) % 2 == 1
        line += 1
    assert line > 60
    assert odd > 2  # deaths that left the count odd
    assert count(registry) % 2 == 0
    assert registry.route("reasoning") is registry.route("reasoning")


def test_i31_a_kept_route_is_what_the_file_says_wherever_a_daemon_pauses(registry: Registry) -> None:
    line, more = 0, True

    def looks() -> None:
        assert chosen(registry) == (SECOND if published(registry.path) else FIRST), f"a pause at line {line}"

    while more:
        becomes_open = not published(registry.path)
        assert chosen(registry) == (FIRST if becomes_open else SECOND)
        more = paused_at(line, lambda is_open=becomes_open: publish(registry.path, is_open=is_open), looks, *OURS)
        assert chosen(registry) == (SECOND if becomes_open else FIRST)
        line += 1
    assert line > 60


def test_i31_a_route_that_was_being_decided_is_not_kept_beyond_its_health(registry: Registry) -> None:
    """The reader pauses at each of its lines, and the daemon publishes meanwhile."""
    line, more = 0, True
    while more:
        becomes_open = not published(registry.path)
        registry._decisions = NOTHING_DECIDED
        more = paused_at(
            line,
            lambda: registry.route("reasoning"),
            lambda is_open=becomes_open: publish(registry.path, is_open=is_open),
            "deciding.py",
            "host_health.py",
        )
        assert chosen(registry) == (SECOND if becomes_open else FIRST), f"a pause at line {line}"
        line += 1
    assert line > 40


def test_nothing_is_kept_while_a_list_is_being_put_in_force(registry: Registry) -> None:
    with RevisionFile(registry.path, writable=True).changing_health():
        assert registry.route("reasoning") is not registry.route("reasoning")
        assert chosen(registry) == FIRST
    assert registry.route("reasoning") is registry.route("reasoning")


def test_what_fails_leaves_the_count_odd_and_the_next_list_makes_it_even(registry: Registry) -> None:
    file = RevisionFile(registry.path, writable=True)
    with pytest.raises(ZeroDivisionError), file.changing_health():
        raise ZeroDivisionError
    assert file.health_count[()] % 2 == 1
    publish(registry.path, is_open=True)
    assert file.health_count[()] % 2 == 0
    assert chosen(registry) == SECOND


def test_a_daemon_counts_in_the_revision_file_that_is_there_now(registry: Registry) -> None:
    """A writer that opens makes another one."""
    daemon = HealthFile(registry.path, writable=True)
    daemon.publish([])
    with RegistryWriter(registry.path):
        pass
    assert chosen(registry) == FIRST
    before = count(registry)
    now = boot_seconds()
    daemon.publish([CircuitRow(FIRST, 1, now, now + 600, 1, 1, 5, "error")])
    assert count(registry) == before + 2
    assert chosen(registry) == SECOND


def test_a_daemon_counts_where_readers_look_though_the_file_was_deleted(registry: Registry) -> None:
    daemon = HealthFile(registry.path, writable=True)
    mapped = RevisionFile(registry.path)
    assert chosen(registry) == FIRST
    held = (registry.path / REVISION_FILE).read_bytes()
    (registry.path / REVISION_FILE).unlink()
    before = mapped.health_count[()]
    daemon.publish([])
    assert mapped.health_count[()] == before + 2
    (registry.path / REVISION_FILE).write_bytes(held)


def test_without_a_registry_there_is_nothing_to_count(tmp_path: Path) -> None:
    publish(tmp_path, is_open=True)
    assert published(tmp_path)
