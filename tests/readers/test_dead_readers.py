"""Readers that die, and tables full of them: they cost nothing for good (I14)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import lmdb
import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, Snapshot, StoreError
from dspy_registry.registry_store import layout
from dspy_registry.registry_store.opening import create
from tests.support.processes import child, requests, run, say


def hold_a_snapshot(folder: str) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        say(snapshot.revision)
        for _ in requests():
            say(snapshot["a.Large"].estimated_duration)


def read_without_end(folder: str) -> None:
    registry = Registry(folder, cache_size=0)
    say("ready")
    while True:
        registry.get_module("a.Large")
        registry.find_by_capability("x")
        with registry.snapshot() as snapshot:
            snapshot.get_module("a.Large")


def rewrite(writer: RegistryWriter, times: int) -> None:
    for number in range(times):
        metadata = {"text": f"{number:06}" * 1000}
        writer.register_module(ModuleInfo("a.Large", estimated_duration=number, metadata=metadata, capabilities=("x",)))


def size(folder: Path) -> int:
    return (folder / layout.DATA_FILE).stat().st_size


def slots(writer: RegistryWriter) -> set[int]:
    """The processes that hold reader slots."""
    lines = writer.store.environment.lmdb.readers().splitlines()
    return {int(line.split()[0]) for line in lines[1:] if line.strip()}


def test_i14_a_reader_killed_with_a_snapshot_costs_room_only_for_a_while(registry_folder: Path) -> None:
    """What a live snapshot keeps is one thing: the file grows with every commit. A dead one must not count."""
    with RegistryWriter(registry_folder) as writer:
        rewrite(writer, 200)
        settled = size(registry_folder)
        with child(__name__, "hold_a_snapshot", registry_folder) as reader:
            reader.hear()
            rewrite(writer, 64)
            while_held = size(registry_folder) - settled  # what 64 commits take
            assert while_held > 0
            assert reader.ask() == 199
            reader.kill()
        rewrite(writer, 640)
        assert size(registry_folder) - settled <= 3 * while_held
        assert reader.pid not in slots(writer)


def test_i14_readers_killed_in_the_midst_of_reads_never_stop_the_writer(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        rewrite(writer, 1)
        for _ in range(4):
            with (
                child(__name__, "read_without_end", registry_folder) as one,
                child(__name__, "read_without_end", registry_folder) as two,
            ):
                assert one.hear() == two.hear() == "ready"
                rewrite(writer, 10)
                one.kill()
                rewrite(writer, 3)
                two.kill()
            rewrite(writer, 3)
        rewrite(writer, 64)
        assert slots(writer) <= {os.getpid()}
        with Registry(registry_folder) as registry:
            assert registry["a.Large"].estimated_duration == 63


@pytest.fixture
def small_table(registry_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryWriter]:
    """A registry with few reader slots, kept open: who opens it alone would enlarge the table."""
    monkeypatch.setattr(layout, "MAX_READERS", 8)
    registry_folder.mkdir()
    create(registry_folder, max_readers=8)
    with RegistryWriter(registry_folder) as writer:
        rewrite(writer, 1)
        yield writer


def read_once(folder: str) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        say(snapshot["a.Large"].estimated_duration)


def test_i14_a_table_full_of_dead_readers_keeps_nobody_out(registry_folder: Path, small_table: RegistryWriter) -> None:
    for _ in range(3):
        with ExitStack() as stack:
            readers = [stack.enter_context(child(__name__, "hold_a_snapshot", registry_folder)) for _ in range(2)]
            for reader in readers:  # each holds two slots and one more
                assert reader.hear()
            for reader in readers:
                reader.kill()
        assert run(__name__, "read_once", registry_folder) == [0]
    assert len(slots(small_table)) < 8
    rewrite(small_table, 3)


def test_i14_a_table_full_of_live_readers_is_an_error_that_says_what_to_do(
    registry_folder: Path, small_table: RegistryWriter
) -> None:
    held: list[Snapshot] = []

    def hold_more() -> None:
        while True:
            held.append(registry.snapshot())

    with Registry(registry_folder) as registry:
        with pytest.raises(StoreError) as caught:
            hold_more()
        assert isinstance(caught.value.__cause__, lmdb.ReadersFullError)
        assert caught.value.remedy
        assert held
        rewrite(small_table, 3)  # the writer needs none
        for snapshot in held:
            snapshot.close()
        with registry.snapshot() as snapshot:
            assert snapshot["a.Large"].estimated_duration == 2
