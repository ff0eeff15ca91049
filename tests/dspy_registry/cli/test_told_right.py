"""What a command says of what it did is so, and what it refuses has its remedy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, RegistryWriter, WriterLockedError
from dspy_registry.cli import console
from dspy_registry.cli.status import _field_rows
from dspy_registry.registry_store.backup import backup, main
from dspy_registry.registry_store.layers import Layer
from dspy_registry.writer.restore import restore
from tests.support.command import answer, run
from tests.support.daemon_process import daemon
from tests.support.damages import hide_the_newest_state

MANIFEST = Layer("manifest:a.toml", {"estimated_duration": 7})


@pytest.fixture
def declared(registry_folder: Path) -> Path:
    with RegistryWriter(registry_folder) as writer:
        writer.store.committer.commit(lambda draft: draft.declare("acme.Qa", MANIFEST))
        writer.register_module(ModuleInfo("acme.Own"))
    return registry_folder


def test_only_an_override_is_released(declared: Path) -> None:
    there = ("--embedded", "--path", declared)
    assert "acme.Qa overrides nothing" in run("release", "acme.Qa", *there).stderr
    assert answer("release", "acme.Qa", *there)["released"] == []
    run("register", "--name", "acme.Qa", *there)
    done = run("release", "acme.Qa", *there)
    assert (done.stdout.startswith("released acme.Qa, as of revision"), done.stderr) == (True, "")
    run("register", "--name", "acme.Qa", *there)
    assert answer("release", "acme.Qa", *there)["released"] == ["acme.Qa"]


def test_what_overrides_nothing_is_told_in_the_order_of_the_command_line(declared: Path) -> None:
    names = [f"acme.N{number}" for number in (3, 1, 4, 0, 5, 2)]
    with RegistryWriter(declared) as writer:
        writer.store.committer.commit(lambda draft: [draft.declare(name, MANIFEST) for name in names])
    told = run("release", *names, "--embedded", "--path", declared).stderr
    assert told == "".join(f"{name} overrides nothing: it stays as it is\n" for name in names)


def test_a_rollback_that_changes_nothing_begins_no_override(declared: Path) -> None:
    there = ("--embedded", "--path", declared)
    done = run("rollback", "acme.Qa", "--to", "1", *there)
    assert ("already" in done.stdout, done.stderr) == (True, "")
    run("register", "--name", "acme.Qa", *there)
    assert "overrides manifest:a.toml" in run("rollback", "acme.Qa", "--to", "1", *there).stderr


def test_what_came_back_by_a_rollback_is_told_when_its_manifest_counts_again(declared: Path) -> None:
    there = ("--embedded", "--path", declared)
    run("unregister", "acme.Qa", *there)
    run("rollback", "acme.Qa", *there)
    done = run("release", "acme.Qa", *there)
    assert done.returncode == 1
    assert "next change of its folder" in done.stderr


def test_a_restore_under_a_writer_says_to_stop_it(declared: Path, tmp_path: Path) -> None:
    backup(tmp_path / "backup", declared)
    with daemon(declared) as served:
        done = run("restore", tmp_path / "backup", "--yes", "--path", declared)
        assert done.returncode == 1
        assert f"process {served.pid}" in done.stderr
        assert "Nothing was changed. Stop that writer" in done.stderr
        with pytest.raises(WriterLockedError, match="Stop that writer"):
            restore(tmp_path / "backup", declared)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(3600.0, "1h"), (86_400.0, "1d"), (90.0, "90s"), (900, "15m"), (0.5, "0.5s")]
)
def test_intervals_are_shown_as_options_take_them(seconds: float, shown: str) -> None:
    assert console.duration(seconds) == shown
    assert list(_field_rows("backups.every", seconds)) == [("backups.every", shown)]


# A backup of a registry that has lost acknowledged changes


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    folder = tmp_path / "damaged"
    with RegistryWriter(folder) as writer:
        writer.register_module(ModuleInfo("acme.Early"))
        writer.register_module(ModuleInfo("acme.Late"))
    hide_the_newest_state(folder)
    return folder


def test_a_backup_says_which_acknowledged_changes_it_lacks(damaged: Path, tmp_path: Path) -> None:
    done = run("backup", tmp_path / "one", "--path", damaged)
    assert done.returncode == 1
    assert "revision 2" in done.stdout
    assert "revision 3 was committed" in done.stderr
    done = run("backup", tmp_path / "two", "--json", "--path", damaged)
    assert (done.returncode, "revision 3" in json.loads(done.stdout)["missing"]) == (1, True)
    assert main([str(tmp_path / "three"), str(damaged)]) == 1


def test_a_whole_backup_lacks_nothing(declared: Path, tmp_path: Path) -> None:
    assert answer("backup", tmp_path / "one", "--path", declared)["missing"] is None
    assert run("backup", "", "--path", declared).returncode == 2
