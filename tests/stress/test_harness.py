"""The fault suite itself: it notices what is wrong, and lays out the disks that it says."""

from __future__ import annotations

import json
import os
import random
import signal
from itertools import islice
from pathlib import Path

import pytest

from dspy_registry import RegistryWriter
from tests.stress import damaged, injection, publish
from tests.stress.apart import Apart, asked
from tests.stress.crash_states import ALL, NAMES, NOTHING, TORN, Point, build, points
from tests.stress.faults import Plan
from tests.stress.power_loss import SCENARIOS, recorded
from tests.stress.recording import Event, can_record
from tests.stress.table import FAULTS

# A suite that finds nothing


@pytest.mark.skipif(not can_record(), reason="strace cannot trace here")
@pytest.mark.full
def test_a_writer_that_syncs_nothing_is_found_out(tmp_path: Path) -> None:
    def without_syncs(events: list[Event]) -> list[Event]:
        return [event._replace(is_durable=False) for event in events if event.kind != "sync"]

    plan = Plan(tmp_path, seed=1, count=60)
    found = recorded(SCENARIOS["commits"], tmp_path / "recorded", 1, alter=without_syncs)
    cases = [found.case(plan, str(number), number) for number in range(60)]
    assert sum("nothing" in case.note and bool(case.problems) for case in cases) > 0
    assert not any(case.problems for case in cases if case.note.endswith("all"))


def test_a_commit_that_was_acknowledged_and_is_not_there_is_found_out(tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "r") as writer:
        for value in (1, 2, 3):
            writer.register_modules(injection.batch(value))
    said = [["opened", "", ""], *(["done", value, ""] for value in (1, 2, 3))]
    assert injection.judged(tmp_path / "r", said) == []
    assert injection.judged(tmp_path / "r", [*said, ["done", 4, ""], ["done", 5, ""]])
    assert injection.judged(tmp_path / "r", [*said, ["read", [2], ""]])
    assert injection.judged(tmp_path / "r", [*said, ["refused", 4, "an error that is not ours"]])


def test_damage_that_changes_answers_is_found_out(tmp_path: Path) -> None:
    damaged.make(tmp_path / "r")
    sound = damaged.answers(tmp_path / "r", [])
    assert damaged.judged(tmp_path / "r", sound) == ([], "harmless")
    for question in ("record a.M1", "alias cot", "capability x", "list"):
        assert damaged.judged(tmp_path / "r", {**sound, question: "something else"})[0], question


def test_a_child_that_dies_or_fails_or_hangs_is_told() -> None:
    assert asked(lambda: [1, {"a": None}]) == ([1, {"a": None}], "")
    assert asked(lambda: os.kill(os.getpid(), signal.SIGKILL))[1] == "it died of SIGKILL"
    assert "ZeroDivisionError" in asked(lambda: 1 / 0)[1]
    with Apart(lambda say, hear: say(hear())) as child:
        assert child.hear(0.01) is None
        assert child.is_stuck


# Disks


EVENTS = [
    Event("create", "a"),
    Event("write", "a", 0, b"1" * 1024),
    Event("sync", "a"),
    Event("sync", ""),
    Event("write", "a", 512, b"2" * 1024),
    Event("create", ".b"),
    Event("write", ".b", 0, b"new", is_durable=True),
    Event("rename", ".b", to="b"),
]


def disks(point: Point, mode: str, room: Path) -> set[tuple[tuple[str, bytes], ...]]:
    """All that can be laid out, as far as some tries show."""
    found = set()
    for number in range(60):
        place = room / f"{mode}{number}"
        place.mkdir()
        build(point, mode, random.Random(number), place)
        found.add(tuple(sorted((path.name, path.read_bytes()) for path in place.iterdir())))
    return found


def test_what_was_synced_is_on_every_disk_and_of_the_rest_any_part(tmp_path: Path) -> None:
    last = points(EVENTS, {})[-1]
    first, second = b"1" * 1024, b"1" * 512 + b"2" * 1024
    assert disks(last, ALL, tmp_path) == {(("a", second), ("b", b"new"))}
    assert disks(last, NOTHING, tmp_path) == {(("a", first), ("b", b"new"))}  # its write was one that syncs
    torn = {dict(disk)["a"] for disk in disks(last, TORN, tmp_path)}
    halves = (b"1" * 512 + b"2" * 512, b"1" * 1024 + b"2" * 512)
    assert torn == {first, second, *halves}
    names = {tuple(dict(disk)) for disk in disks(last, NAMES, tmp_path)}
    assert names == {("a",), (".b", "a"), ("a", "b")}


def test_a_write_that_syncs_may_be_cut_off_while_it_is_under_way(tmp_path: Path) -> None:
    during = points(EVENTS, {})[7]
    assert {dict(disk)[".b"] for disk in disks(during, NOTHING, tmp_path)} == {b""}


def test_a_case_can_be_repeated(tmp_path: Path) -> None:
    plan = Plan(tmp_path, seed=5, count=10)
    assert list(islice(plan.cases(), 3)) == ["0", "1", "2"]
    assert list(Plan(tmp_path, 5, 10, only="7").cases()) == ["7"]
    assert plan.chance("7").random() == Plan(tmp_path, 5, 10, only="7").chance("7").random()
    assert plan.chance("7").random() != plan.chance("8").random()


def test_the_page_shows_the_results_that_are_kept() -> None:
    faults = json.loads(publish.RESULTS.read_text())
    page = publish.PAGE.read_text()
    assert publish.filled(page, faults) == page
    assert [fault["violations"] for fault in faults] == [[]] * len(faults)
    assert {fault["name"] for fault in faults} == set(FAULTS)


def test_a_later_run_of_a_fault_replaces_an_earlier_one() -> None:
    run = {"command": "c", "date": "2026-01-01T00:00:00Z", "machine": "m", "revision": "r", "seed": 1}
    fault = {"name": "a", "how": "h", "unit": "u", "seconds": 60.0, "violations": [], "notes": {}, "skipped": {}}
    runs = [{**run, "faults": [{**fault, "tried": tried}]} for tried in (1, 2)]
    (only,) = publish.merged(runs)
    assert only["tried"] == 2
    assert "| a | h | 2 u | 0 | 1.0 | `c`, 2026-01-01, commit r |" in publish.table([only])
