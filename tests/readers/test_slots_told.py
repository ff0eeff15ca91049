"""Who holds reader slots and old pages is told, also when no slot is free."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from dspy_registry import NoReaderSlotError, Registry, RegistryWriter, Snapshot
from dspy_registry.registry_store.opening import create
from dspy_registry.registry_store.reader_table import Slot, holders, parse_lock_file, read_without_slot
from dspy_registry.registry_store.revision import RevisionFile
from dspy_registry.writer.daemon.bounds import Bounds
from dspy_registry.writer.daemon.laggards import FAR_BEHIND, LONG, Laggards
from dspy_registry.writer.daemon.lifecycle import Daemon
from tests.readers.test_dead_readers import rewrite
from tests.support.command import run_in_child
from tests.support.daemon_process import PATIENT, daemon, module
from tests.support.processes import Process, child, say

HOLDER = "tests.readers.test_dead_readers"


@contextmanager
def holding(folder: Path) -> Iterator[Process]:
    """A process that has a snapshot open, three slots in all."""
    with child(HOLDER, "hold_a_snapshot", folder) as process:
        assert process.hear()
        yield process


@pytest.fixture
def full(registry_folder: Path) -> Iterator[tuple[Path, RegistryWriter, list[Process]]]:
    """A registry whose slots are taken by snapshots, and its writer, which keeps the table as small as it is."""
    with ExitStack() as stack:
        first = stack.enter_context(small(registry_folder))
        held = [stack.enter_context(holding(registry_folder)) for _ in range(2)]
        kept: list[Snapshot] = []
        with suppress(NoReaderSlotError):
            take_all_slots(registry_folder, kept)
        yield registry_folder, first, held
        for snapshot in kept:
            snapshot.close()


def take_all_slots(folder: Path, kept: list[Snapshot]) -> None:
    """Raises NoReaderSlotError in the end."""
    with Registry(folder) as registry:
        while True:
            kept.append(registry.snapshot())


@contextmanager
def small(folder: Path) -> Iterator[RegistryWriter]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dspy_registry.registry_store.layout.MAX_READERS", 8)
        folder.mkdir()
        create(folder, max_readers=8)
        with RegistryWriter(folder) as writer:
            rewrite(writer, 1)
            yield writer


def test_the_table_is_read_the_same_with_lmdb_and_without(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, holding(registry_folder) as holder:
        rewrite(writer, 3)
        slots, newest = writer.store.environment.reader_slots()
        assert (sorted(map(str, slots)), newest) == (
            sorted(map(str, read_without_slot(registry_folder)[0])),
            read_without_slot(registry_folder)[1],
        )
        found = {each.pid: each for each in holders(slots, newest)}
        assert found[holder.pid].behind == 3
        assert "python" in (found[holder.pid].command or "")
    assert parse_lock_file(b"") == parse_lock_file(bytes(1000)) == ([], 0)


def test_the_dead_are_not_named() -> None:
    assert holders([Slot(999_999_999, 5), Slot(os.getpid(), None)], 7)[0].pid == os.getpid()
    assert len(holders([Slot(999_999_999, 5), Slot(os.getpid(), None)], 7)) == 1


def test_i23_whoever_finds_no_slot_is_told_who_has_them(full: tuple[Path, RegistryWriter, list[Process]]) -> None:
    folder, writer, held = full
    with pytest.raises(NoReaderSlotError) as caught:
        take_all_slots(folder, [])
    for process in held:
        assert str(process.pid) in caught.value.message
    assert caught.value.remedy
    rewrite(writer, 3)


def test_i23_status_needs_no_slot(full: tuple[Path, RegistryWriter, list[Process]]) -> None:
    folder, writer, held = full
    rewrite(writer, 6)
    done = run_in_child("status", "--json", "--path", folder)
    told = json.loads(done.stdout)["registry"]
    assert (told["revision"], told["modules"]) == (int(RevisionFile(folder).word[()]) // 2, None)
    assert told["writer_pid"] == os.getpid()
    behind = {each["pid"]: each["behind"] for each in told["readers"]}
    assert all(behind[process.pid] == 5 for process in held)
    assert 0 < told["unused_pages"] < told["pages"]
    text = run_in_child("status", "--path", folder).stdout
    assert all(str(process.pid) in text for process in held)
    for command in ("check", "serve", "get"):
        done = run_in_child(command, *(["dspy.Predict"] if command == "get" else []), "--path", folder)
        assert done.returncode == 1, done
        assert "Traceback" not in done.stderr
        assert str(held[0].pid) in done.stderr or command == "serve", done


def test_a_daemon_waits_for_a_slot(full: tuple[Path, RegistryWriter, list[Process]]) -> None:
    folder, writer, held = full
    writer.close()
    with child(__name__, "serve_in_time", folder) as served:
        assert any(str(process.pid) in served.hear() for process in held)
        for process in held:
            process.kill()
        with Registry(folder) as registry:  # any process that reads frees the slots of the dead
            assert registry.get_module("dspy.Predict")
        assert served.hear() == "serves"


def serve_in_time(path: str) -> None:
    """Say what the daemon is waiting for, and that it serves."""
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("dspy_registry").addHandler(handler)
    served = Daemon(path, bounds=Bounds(slot_patience=PATIENT))
    served.run(lambda _: (say("serves"), served.stop()))


def test_the_daemon_tells_since_when_a_snapshot_is_held(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client, holding(registry_folder) as holder:
        for number in range(3):
            client.register_module(module(f"acme.M{number}"))
        seen: list[dict[str, object]] = []
        while not (seen and seen[0]["since"]):
            time.sleep(0.02)
            sections = client.status().sections
            seen = [each for each in sections["readers"] if each["pid"] == holder.pid]
        assert seen[0]["behind"] == 3
        told = json.loads(run_in_child("status", "--json", "--path", registry_folder).stdout)
        assert [each["since"] for each in told["registry"]["readers"] if each["pid"] == holder.pid] == [
            seen[0]["since"]
        ]
        assert "readers" not in told["daemon"]["sections"]


def test_a_laggard_is_logged_once_and_named(caplog: pytest.LogCaptureFixture) -> None:
    laggards, me = Laggards(), os.getpid()
    caplog.set_level(logging.WARNING, "dspy_registry")
    slots = [Slot(me, 1), Slot(me, 200), Slot(me, None)]
    laggards.look(slots, FAR_BEHIND, 1000.0)
    laggards.look(slots, FAR_BEHIND, 1000.0 + LONG)  # long, not far
    laggards.look(slots, 1 + FAR_BEHIND, 1000.0 + LONG - 1)  # far, not long
    assert caplog.records == []
    for later in (0.0, 5.0, 10.0):
        laggards.look(slots, 1 + FAR_BEHIND, 1000.0 + LONG + later)
    assert [str(me) in record.getMessage() for record in caplog.records] == [True]
    assert laggards.holders(slots, 201)[0].since == 1000.0
    laggards.look([Slot(me, 200)], 300, 2000.0)
    assert laggards.holders([Slot(me, 200)], 300)[0].since == 1000.0
    laggards.look([], 300, 3000.0)
    laggards.look([Slot(me, 200)], 300, 4000.0)
    assert laggards.holders([Slot(me, 200)], 300)[0].since == 4000.0
