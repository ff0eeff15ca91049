"""The file `health`: never a torn list, none of another boot, and what a daemon that is killed leaves."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec
import pytest

from dspy_registry.registry_store import health_file
from dspy_registry.registry_store.boot_clock import boot_seconds
from dspy_registry.registry_store.circuit import CircuitRow
from dspy_registry.registry_store.circuits import Circuits
from dspy_registry.registry_store.errors import CorruptRecordError, RegistryNotFoundError, StoreError
from dspy_registry.registry_store.health_file import (
    HEALTH_FILE,
    HealthFile,
    ensure_health_file,
    entries,
    health_file_problems,
)
from dspy_registry.registry_store.layout import REVISION_FILE
from dspy_registry.registry_store.revision import is_retired
from dspy_registry.writer.registry_writer import RegistryWriter
from tests.support.few_files import few_files
from tests.support.processes import child, run, say


def row(name: str, until: float = 0.0, openings: int = 1) -> CircuitRow:
    return CircuitRow(name, 3, boot_seconds(), until, 2, openings, 7, "timeout")


def test_what_is_published_is_read(tmp_path: Path) -> None:
    daemon = ensure_health_file(tmp_path)
    reader = HealthFile(tmp_path)
    before = reader.read()
    assert before == (reader.word[()], ())
    rows = (row("a.B", boot_seconds() + 60), row("a.C"))
    word = daemon.publish(rows)
    assert reader.read() == (word, rows) != before
    assert reader.word[()] == word


def test_users_see_what_is_not_healthy(tmp_path: Path) -> None:
    now = boot_seconds()
    found = entries([row("a.Open", now + 60), row("a.Half", now - 60), row("a.Closed")])
    assert [(entry.name, entry.state) for entry in found] == [("a.Half", "half_open"), ("a.Open", "open")]
    assert found[1].until == pytest.approx(time.time() + 60, abs=1)
    assert (found[1].failures, found[1].last_kind, found[1].openings, found[1].version) == (7, "timeout", 1, 3)


def test_the_next_daemon_adopts_what_is_open_and_how_often_it_was(tmp_path: Path) -> None:
    first = Circuits(boot_seconds, lambda: 0.5)
    first.open_by_hand("a.B", 3, 60.0)
    ensure_health_file(tmp_path).publish([*first.rows(), row("a.C")])
    second = Circuits(boot_seconds, lambda: 0.5)
    second.adopt(ensure_health_file(tmp_path).read()[1])
    assert second.state("a.B", 3) == "open"
    assert {found.name: found.level for found in second.rows()} == {"a.B": 0, "a.C": 2}


def test_a_list_of_another_boot_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = ensure_health_file(tmp_path)
    daemon.publish([row("a.B", boot_seconds() + 60)])
    monkeypatch.setattr(health_file, "boot_id", lambda: "another boot")
    assert HealthFile(tmp_path).read()[1] == ()


def keep_publishing(folder: str) -> None:
    """Lists of which every row says how many there are, for ever."""
    daemon = HealthFile(Path(folder), writable=True)
    count = 0
    say("ready")
    while True:
        count = (count * 7 + 3) % 211
        daemon.publish([row(f"a.M{number}", 1e9, openings=count) for number in range(count)])


def test_no_list_is_ever_torn(tmp_path: Path) -> None:
    ensure_health_file(tmp_path)
    reader, words = HealthFile(tmp_path), set()
    with child("tests.registry_store.test_health_file", "keep_publishing", tmp_path) as daemon:
        assert daemon.hear() == "ready"
        while len(words) < 500:
            word, rows = reader.read()
            words.add(word)
            assert {found.openings for found in rows} <= {len(rows)}
        daemon.kill()
    for _ in range(3):
        assert {found.openings for found in reader.read()[1]} <= {len(reader.read()[1])}


def test_a_half_written_list_is_not_in_force(tmp_path: Path) -> None:
    daemon = ensure_health_file(tmp_path)
    rows = (row("a.B", 1e9),)
    word = daemon.publish(rows)
    place = health_file._place(word + 1)
    daemon._map[place : place + 100] = b"\xff" * 100  # killed while it wrote the next
    assert HealthFile(tmp_path).read() == (word, rows)


def test_what_there_is_no_room_for_is_left_out(tmp_path: Path) -> None:
    daemon = ensure_health_file(tmp_path)
    rows = [row("a." + "x" * 200 + str(number), 1e9 + number) for number in range(6000)]
    daemon.publish(rows)
    kept = HealthFile(tmp_path).read()[1]
    assert 1000 < len(kept) < 6000
    assert min(found.until for found in kept) == 1e9 + 6000 - len(kept)


def test_a_damaged_or_foreign_file_is_made_again_and_the_former_retired(tmp_path: Path) -> None:
    with pytest.raises(RegistryNotFoundError):
        HealthFile(tmp_path)
    daemon = ensure_health_file(tmp_path)
    word = daemon.publish([row("a.B", 1e9)])
    reader = HealthFile(tmp_path)
    place = health_file._place(word)
    daemon._map[place + 12 : place + 16] = b"\xff" * 4
    with pytest.raises(CorruptRecordError):
        reader.read()
    assert len(health_file_problems(tmp_path)) == 1
    assert ensure_health_file(tmp_path).read()[1] == ()
    assert is_retired(reader.word[()])
    assert not reader.is_current()
    assert health_file_problems(tmp_path) == []
    (tmp_path / HEALTH_FILE).write_bytes(b"short")
    with pytest.raises(StoreError):
        HealthFile(tmp_path)
    assert ensure_health_file(tmp_path).read()[1] == ()


def open_with_few_files(path: str) -> None:
    """As a daemon that starts with one file more each time, beside a reader that has mapped what is there."""
    folder = Path(path)
    rows = (row("a.B", 1e9),)
    ensure_health_file(folder).publish(rows)
    for more in range(20):
        reader = HealthFile(folder)
        try:
            with few_files(more):
                daemon = ensure_health_file(folder)
        except StoreError:
            say(reader.is_current() and reader.read()[1] == rows)
            continue
        assert daemon.read() == reader.read()
        return


def test_i23_too_many_open_files_take_no_list_from_readers(registry_folder: Path) -> None:
    RegistryWriter(registry_folder).close()
    said = run(__name__, "open_with_few_files", registry_folder)
    assert len(said) > 2
    assert all(said)


def test_a_revision_file_that_cannot_be_opened_takes_no_list_from_readers(registry_folder: Path) -> None:
    RegistryWriter(registry_folder).close()
    daemon = ensure_health_file(registry_folder)
    rows = (row("a.B", 1e9),)
    word = daemon.publish(rows)
    reader = HealthFile(registry_folder)
    (registry_folder / REVISION_FILE).rename(registry_folder / "former")
    (registry_folder / REVISION_FILE).symlink_to("former")
    with pytest.raises(StoreError, match=REVISION_FILE):
        ensure_health_file(registry_folder)
    assert reader.is_current()
    assert reader.read() == (word, rows)
    assert daemon.publish([]) == word + 1 == reader.read()[0]  # the daemon that runs goes on
    (registry_folder / "former").replace(registry_folder / REVISION_FILE)


def test_it_is_for_user_and_group_to_read(tmp_path: Path) -> None:
    previous = os.umask(0o007)
    try:
        ensure_health_file(tmp_path)
    finally:
        os.umask(previous)
    assert (tmp_path / HEALTH_FILE).stat().st_mode & 0o777 == 0o640


def test_entries_are_plain(tmp_path: Path) -> None:
    assert msgspec.to_builtins(entries([row("a.B", 1e9)])[0])["name"] == "a.B"
