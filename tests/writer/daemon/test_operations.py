"""Backups and checks that the daemon makes by itself: sound ones are kept, and what is wrong is in its status."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter
from dspy_registry.cli.status import problems
from dspy_registry.registry_store.backup import PARTIAL, backup
from dspy_registry.writer.daemon.backups import Backups, due_in, made_in
from dspy_registry.writer.daemon.checks import Checks
from dspy_registry.writer.daemon.lifecycle import Daemon
from dspy_registry.writer.restore import restore
from tests.conftest import violations
from tests.support.command import COMMAND, run
from tests.support.daemon_process import PATIENT
from tests.support.damages import hide_the_newest_state
from tests.support.raw_access import flipped, opened
from tests.writer.daemon.test_hooks import outcome_of

DAY = 86_400.0


def made(folder: Path, place: Path, keep: int = 2, times: int = 1) -> Any:
    """The status after the daemon of `folder` has made backups."""

    async def hook(_: Daemon) -> Any:
        backups = Backups(folder, place, DAY, keep)
        for _ in range(times):
            await backups.make()
        return backups.status()

    return outcome_of(folder, hook)


def earlier(folder: Path, place: Path, *names: str) -> None:
    for name in names:
        backup(place / name, folder)


def damage(folder: Path) -> None:
    with opened(folder) as (get, put):
        put("modules", b"dspy.Predict", flipped(get("modules", b"dspy.Predict")))


def test_a_backup_is_made_checked_and_can_be_restored(seeded_registry: Path, tmp_path: Path) -> None:
    status = made(seeded_registry, tmp_path / "new" / "backups")
    (only,) = made_in(tmp_path / "new" / "backups")
    assert (status["kept"], status["error"], status["last_revision"]) == (1, "", 1)
    assert abs(status["last_at"] - time.time() * 1000) < 600_000
    assert violations(only) == []
    restore(only, tmp_path / "restored")
    with Registry(tmp_path / "restored") as restored, Registry(seeded_registry) as registry:
        assert dict(restored) == dict(registry)


def test_the_newest_are_kept_and_nothing_else_is_touched(seeded_registry: Path, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    earlier(seeded_registry, place, "20200101T000000Z", "20200102T000000Z", "20200103T000000Z", "by-hand")
    (place / "notes").write_text("mine")
    (place / "20200104T000000Z" / PARTIAL).mkdir(parents=True)  # of one that was killed
    status = made(seeded_registry, place, keep=2)
    assert made_in(place)[0].name == "20200103T000000Z"
    assert status["kept"] == 2
    assert {"by-hand", "notes"} < {path.name for path in place.iterdir()}
    assert not (place / "20200104T000000Z").exists()


def test_a_backup_that_lacks_acknowledged_changes_is_told_and_counts_for_none(tmp_path: Path) -> None:
    folder, place = tmp_path / "damaged", tmp_path / "backups"
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo("acme.Early"))
        writer.register_module(ModuleInfo("acme.Late"))
    backups = Backups(folder, place, DAY, 1)
    asyncio.run(backups.make())
    (sound,) = made_in(place)
    sound.rename(place / "20200101T000000Z")
    hide_the_newest_state(folder)
    asyncio.run(backups.make())
    assert [path.name for path in made_in(place)] == ["20200101T000000Z"]
    assert "revision 3 was committed" in backups.status()["error"]


def test_a_backup_process_that_fails_by_itself_is_told(
    seeded_registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    backups = Backups(seeded_registry, tmp_path / "backups", DAY, 1)
    asyncio.run(backups.make())
    assert "its process ended with 1" in backups.status()["error"]


def test_an_unsound_backup_is_told_and_costs_no_sound_one(
    seeded_registry: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "backups"
    earlier(seeded_registry, place, "20200101T000000Z", "20200102T000000Z")
    damage(seeded_registry)
    with caplog.at_level(logging.ERROR, "dspy_registry"):
        status = made(seeded_registry, place, keep=2)
    assert "dspy.Predict" in status["error"]
    assert "dspy.Predict" in caplog.text
    assert [path.name for path in made_in(place)] == ["20200101T000000Z", "20200102T000000Z"]
    assert len([path for path in place.iterdir() if path.name.endswith(".unsound")]) == 1


def test_a_place_that_cannot_be_written_is_told(seeded_registry: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    status = made(seeded_registry, tmp_path / "file" / "backups")
    assert str(tmp_path / "file") in status["error"]


@pytest.mark.parametrize(
    ("newest", "expected"), [(None, 0.0), (1000.0, 60.0), (990.0, 50.0), (100.0, 0.0), (2000.0, 0.0)]
)
def test_when_the_first_backup_is_due(newest: float | None, expected: float) -> None:
    assert due_in(1000.0, newest, 60.0) == expected


def test_damage_is_in_the_status_and_in_the_log(seeded_registry: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def hook(_: Daemon) -> Any:
        checks = Checks(seeded_registry, DAY)
        before = checks.status()
        await checks.check()
        sound = checks.status()
        damage(seeded_registry)
        await checks.check()
        return before, sound, checks.status()

    with caplog.at_level(logging.ERROR, "dspy_registry"):
        before, sound, damaged = outcome_of(seeded_registry, hook)
    assert (before["last_at"], before["error"]) == (None, "")
    assert (sound["violations"], sound["error"]) == (0, "")
    assert damaged["violations"] >= 1
    assert "dspy.Predict" in damaged["error"]
    assert "dspy.Predict" in caplog.text


def test_a_check_that_cannot_look_is_told(seeded_registry: Path, tmp_path: Path) -> None:
    async def hook(_: Daemon) -> Any:
        checks = Checks(tmp_path / "none", DAY)
        await checks.check()
        return checks.status()

    assert "could not be run" in outcome_of(seeded_registry, hook)["error"]


def test_serve_does_both_and_leaves_no_process(registry_folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "backups"
    options = ["--backup-every", "1s", "--keep", "2", "--backup-dir", str(place), "--check-every", "1s"]
    process = subprocess.Popen([*COMMAND, "serve", "--path", str(registry_folder), *options], stderr=subprocess.DEVNULL)
    try:
        sections = until_both_ran(registry_folder)
        assert (sections["backups"]["error"], sections["check"]["error"]) == ("", "")
        assert sections["backups"]["folder"] == str(place)
    finally:
        process.terminate()
        assert process.wait(PATIENT) == 0
    assert not [
        path for path in Path("/proc").iterdir() if path.name.isdigit() and names(int(path.name), str(registry_folder))
    ]


def until_both_ran(folder: Path) -> Any:
    deadline = time.monotonic() + PATIENT
    while True:
        told = run("status", "--path", folder, "--json", DSPY_REGISTRY_WAIT="30")
        sections = json.loads(told.stdout)["daemon"]["sections"] if told.stdout else {}
        if sections and sections["backups"]["kept"] and sections["check"]["last_at"]:
            return sections
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def names(pid: int, folder: str) -> bool:
    try:
        return pid != os.getpid() and folder in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_an_error_of_either_is_a_problem_of_the_status(seeded_registry: Path) -> None:
    daemon = {"hanging": False, "sections": {"check": {"error": "3 found"}, "backups": {"error": "no room"}}}
    registry = {"free_bytes": None, "missing": None}
    facts = {"registry": registry, "daemon": daemon, "unreachable": None}
    assert list(problems(facts)) == ["check: 3 found", "backups: no room"]


@pytest.mark.parametrize(
    "options",
    [
        ("--backup-every", "1h"),
        ("--backup-dir", "x"),
        ("--keep", "3"),
        ("--check-every", "often"),
        ("--check-every", "0s"),
        ("--check-every", "9999d"),
        ("--backup-every", "1h", "--backup-dir", "x", "--keep", "0"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_done(registry_folder: Path, options: tuple[str, ...]) -> None:
    done = run("serve", "--path", registry_folder, *options)
    assert done.returncode == 2
    assert not registry_folder.exists()


def test_a_data_file_that_is_cut_short_under_the_daemon_is_named(seeded_registry: Path) -> None:
    process = subprocess.Popen([*COMMAND, "serve", "--path", str(seeded_registry)], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        assert "serves" in process.stderr.readline()
        time.sleep(1.5)  # until it has looked at the size once
        data = seeded_registry / "data.mdb"
        os.truncate(data, data.stat().st_size - 4096)
        told = process.stderr.read()
        assert process.wait(PATIENT) == 1
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert f"{data} was cut short" in told
    assert "repair" in told or "restore" in told
