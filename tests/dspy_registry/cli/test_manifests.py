"""`schema` and `manifests check`, and what `serve` is given to follow."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import click
import pytest

from dspy_registry.cli.console import local_time
from dspy_registry.cli.manifests import manifests, schema, watch_options
from dspy_registry.writer.manifests.schema import manifest_schema
from tests.support.command import COMMAND, run
from tests.support.command import answer as answer_of


def answer(command: click.Command, *arguments: str | Path) -> object:
    return command.main([*map(str, arguments)], prog_name="dspy-registry", standalone_mode=False)


def test_schema_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    answer(schema)
    assert json.loads(capsys.readouterr().out) == manifest_schema()


def test_check_of_sound_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text('[[modules]]\nname = "acme.A"\n')
    assert answer(manifests, "check", tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "directory": str(tmp_path),
        "files": 1,
        "modules": 1,
        "errors": [],
        "overrides": [],
    }
    assert answer(manifests, "check", tmp_path) == 0
    assert "1 file, 1 module, 0 errors" in capsys.readouterr().err


def test_check_tells_every_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").write_text('[[modules]]\nname = "acme.A"\n')
    (tmp_path / "b.yaml").write_text("modules:\n- name: acme.A\n")
    (tmp_path / "c.json").write_text("{")
    assert answer(manifests, "check", tmp_path, "--json") == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [(error["file"], error["line"], error["field"]) for error in errors] == [
        ("a.toml", 2, "modules[0].name"),
        ("b.yaml", 2, "modules[0].name"),
        ("c.json", 1, ""),
    ]
    assert answer(manifests, "check", tmp_path) == 1
    told = capsys.readouterr().err.splitlines()
    assert any(line.startswith("error: b.yaml:2: modules[0].name: ") for line in told)
    assert [line.partition(":")[0] for line in told[:-1]] == ["error"] * 3
    assert told[-1] == "3 files, 0 modules, 3 errors"


def test_check_of_a_folder_without_a_manifest_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("no manifest")
    assert answer(manifests, "check", tmp_path) == 0
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith(f"warning: {tmp_path} holds no manifest: ")
    assert told[-1] == "0 files, 0 modules, 0 errors"


def test_check_against_a_registry_tells_what_only_a_registry_can(
    seeded_registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text("aliases:\n  quick: dspy.Predict\n  dspy.ReAct: dspy.Predict\n  x: al.T\n")
    assert answer(manifests, "check", folder) == 0
    capsys.readouterr()
    assert answer(manifests, "check", folder, "--path", seeded_registry, "--json") == 1
    errors = json.loads(capsys.readouterr().out)["errors"]
    assert [(error["line"], error["field"]) for error in errors] == [(3, "aliases.dspy.ReAct"), (4, "aliases.x")]
    (folder / "a.yaml").write_text("aliases: {quick: dspy.Predict}")
    assert answer(manifests, "check", folder, "--path", seeded_registry) == 0
    assert answer_of("alias", "list") == {"aliases": []}  # nothing was changed
    assert run("manifests", "check", folder, "--path", tmp_path / "none").returncode == 1


def test_check_of_what_is_no_folder_is_used_wrongly(tmp_path: Path) -> None:
    with pytest.raises(click.UsageError):
        answer(manifests, "check", tmp_path / "missing")


def test_a_daemon_tells_what_is_wrong_to_people_and_programs(registry_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.toml").write_text('[[modules]]\nname = "acme.A"\n')
    (folder / "b.toml").write_text('[[modules]]\nname = "acme.B"\npool_type = 5\n')
    command = [*COMMAND, "serve", "--path", str(registry_folder), "--manifests", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            while " 1 error, as of revision " not in (line := process.stderr.readline()):
                assert line
            manifests = json.loads(run("status", "--path", registry_folder, "--json").stdout)["daemon"]["sections"][
                "manifests"
            ]
            assert manifests["errors"] == [
                {"file": "b.toml", "line": 3, "field": "modules[0].pool_type", "message": "5 is not a string"}
            ]
            assert (manifests["files"], manifests["modules"]) == (2, 1)
            told = run("status", "--path", registry_folder).stdout
            assert "manifests.errors     b.toml:3: modules[0].pool_type: 5 is not a string" in told
            assert "manifests: 1 error: b.toml:3: modules[0].pool_type: 5 is not a string" in told
            assert f"manifests.loaded_at  {local_time(manifests['loaded_at'])}\n" in told
            assert answer_of("get", "acme.A", "--path", registry_folder)["provenance"]["source"] == "manifest:a.toml"
        finally:
            process.terminate()
            process.stderr.read()
    assert process.returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--manifests", "/nowhere"),
        ("--package", "acme"),
        ("--python", "python3"),
        ("--timeout", "5"),
    ],
)
def test_serve_used_wrongly(registry_folder: Path, arguments: tuple[str, ...]) -> None:
    done = run("serve", "--path", registry_folder, *arguments)
    assert done.returncode == 2
    assert arguments[0] in done.stderr
    assert not registry_folder.exists()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_serve_refuses_a_time_limit_that_is_none_at_the_start(registry_folder: Path, seconds: str) -> None:
    done = run("serve", "--path", registry_folder, "--discover", "--timeout", seconds)
    assert done.returncode == 2
    assert "timeout" in done.stderr
    assert not registry_folder.exists()


def test_the_options_that_serve_takes(tmp_path: Path) -> None:
    given: list[dict[str, object]] = []

    @click.command()
    @watch_options
    def serve(**options: object) -> None:
        given.append(options)

    answer(serve)
    answer(serve, "--manifests", tmp_path, "--discover", "--package", "acme", "--python", "python3", "--timeout", "9")
    assert given == [
        {"manifests": None, "discover": False, "packages": (), "python": None, "timeout": None},
        {"manifests": tmp_path, "discover": True, "packages": ("acme",), "python": "python3", "timeout": 9.0},
    ]
