"""`repair` at the command line: what is taken and lost is listed, and the exit status tells whether anything is."""

from __future__ import annotations

import json
from pathlib import Path

from dspy_registry import ModuleInfo, RegistryWriter
from tests.conftest import violations
from tests.support.command import answer, refusal, run
from tests.writer.test_repair import damage


def test_a_sound_registry_loses_nothing(seeded_registry: Path, tmp_path: Path) -> None:
    done = run("repair", seeded_registry, "--into", tmp_path / "new")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing lost" in done.stdout
    assert answer("repair", seeded_registry, "--into", tmp_path / "again")["lost"] == []


def test_what_is_lost_is_listed_and_is_the_exit_status(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(ModuleInfo("acme.Only"))
    damage(seeded_registry, "modules", b"acme.Only")
    done = run("repair", seeded_registry, "--into", tmp_path / "new")
    assert done.returncode == 1
    assert "lost     modules/acme.Only: " in done.stdout
    told = run("repair", seeded_registry, "--into", tmp_path / "again", "--json")
    assert told.returncode == 1
    assert [each["where"] for each in json.loads(told.stdout)["lost"]] == ["modules/acme.Only"]
    assert violations(tmp_path / "new") == []


def test_a_refusal_is_an_error_with_its_remedy(seeded_registry: Path, tmp_path: Path) -> None:
    (seeded_registry / "data.mdb").write_bytes(b"")
    status, error = refusal("repair", seeded_registry, "--into", tmp_path / "new")
    assert status == 1
    assert "--backup" in error["remedy"]
    assert run("repair", seeded_registry).returncode == 2
