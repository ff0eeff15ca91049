"""How the command line fails: exit statuses, messages with a remedy, and never a traceback."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, RegistryWriter
from tests.support.command import COMMAND, refusal, run, run_process
from tests.support.selection import each

pytestmark = pytest.mark.usefixtures("seeded_registry")


def test_a_missing_module_exits_with_1_and_says_what_is_near() -> None:
    done = run_process("get", "dspy.ChainOfThougt")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "'dspy.ChainOfThougt'" in done.stderr
    assert "dspy.ChainOfThought" in done.stderr
    status, error = refusal("route", "dspy.ChainOfThougt")
    assert (status, error["type"]) == (1, "UnknownModuleError")
    assert "dspy.ChainOfThought" in error["remedy"]


@pytest.mark.parametrize("command", [["get", "x"], ["list"], ["find", "--gpu"], ["route", "x"], ["watch"], ["check"]])
def test_a_missing_registry_is_told_with_its_remedy(command: list[str], tmp_path: Path) -> None:
    status, error = refusal(*command, "--path", tmp_path / "none")
    assert (status, error["type"]) == (1, "RegistryNotFoundError")
    assert error["remedy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gett"], "'gett'"),
        (["get"], "NAME"),
        (["get", "x", "--jsonn"], "--jsonn"),
        (["find", "--max-memory", "huge"], "huge"),
        (["route", "x", "--input-size", "-1"], "-1"),
        (["completion", "tcsh"], "tcsh"),
        (["alias"], "alias"),
    ],
)
def test_wrong_use_exits_with_2(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "--help" in done.stderr


@pytest.mark.parametrize("arguments", [["gett"], ["get"], ["find"], ["find", "--max-memory", "huge"], ["alias", "set"]])
def test_wrong_use_is_told_in_json_too(arguments: list[str]) -> None:
    status, error = refusal(*arguments)
    assert status == 2
    assert "--help" in error["remedy"]


def test_no_command_shows_the_help_and_exits_with_2() -> None:
    done = run_process()
    assert (done.returncode, done.stdout) == (2, "")
    assert "ChainOfThought" in done.stderr  # one of its examples


@pytest.mark.parametrize("command", [["get", "Predict"], ["list"], ["check"], ["serve"], ["status"]])
def test_an_empty_path_is_an_error_that_names_it(command: list[str]) -> None:
    done = run(*command, "--path", "")
    assert done.returncode == 2
    assert "--path" in done.stderr


def test_a_watch_of_no_length_is_refused(seeded_registry: Path) -> None:
    status, error = refusal("watch", "--timeout", "nan")
    assert (status, error["type"]) == (2, "BadParameter")  # as every number that is none
    assert "'nan' is not a number" in error["message"]


def test_a_capability_that_no_module_has_comes_with_the_nearest(seeded_registry: Path) -> None:
    done = run("find", "-c", "resoning", "-c", "tool_use")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'resoning'" in done.stderr
    assert " reasoning" in done.stderr
    assert "'tool_use'" not in done.stderr
    assert "'zzzz'" in run("find", "-c", "zzzz", "--names").stderr
    assert run("find", "-c", "resoning", "--json").stderr == ""


@pytest.mark.parametrize(
    "command", each(3, ["list", "list --json", "get Predict", "find -c none", "check", "stats", "--help"])
)
def test_a_closed_standard_output_is_no_traceback(seeded_registry: Path, command: str) -> None:
    shown = run(*command.split())
    line = shlex.join([*COMMAND, *command.split()])
    done = subprocess.run(["sh", "-c", f"{line} >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (shown.returncode, "", shown.stderr)


def test_a_file_that_is_no_registry_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_text("hello")
    status, error = refusal("list", "--path", tmp_path)
    assert (status, error["type"]) == (1, "DamagedStoreError")
    assert error["message"].count(str(tmp_path)) == 1
    assert error["remedy"]


def test_path_wins_over_the_environment(seeded_registry: Path, tmp_path: Path) -> None:
    assert run("get", "Predict", "--path", tmp_path / "none").returncode == 1
    assert run("get", "Predict", "-p", seeded_registry, DSPY_REGISTRY=str(tmp_path / "none")).returncode == 0
    assert run("get", "Predict", DSPY_REGISTRY=str(tmp_path / "none")).returncode == 1


def test_a_reader_that_has_seen_enough_is_no_error(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_modules([ModuleInfo(f"acme.M{number}") for number in range(3000)])
    with subprocess.Popen([*COMMAND, "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"NAME")
        process.stdout.close()
        assert process.stderr.read() == b""


def test_unusual_words_can_be_looked_for() -> None:
    assert run("find", "--capability", "a\tb").returncode == 1
    assert run("get", "x" * 300).returncode == 1


@pytest.mark.parametrize(
    "command",
    each(
        3,
        ["get", "history", "route", "rollback", "release --embedded", "unregister --embedded", "rename new --embedded"],
    ),
)
def test_text_that_is_no_utf8_is_told_as_one_json_document(command: str, seeded_registry: Path) -> None:
    name, *options = command.split()
    arguments = [*COMMAND, name, b"\xff", *options, "--json"]
    done = subprocess.run(arguments, capture_output=True, check=False)
    assert done.returncode == 1
    assert "\\udcff" in json.loads(done.stderr)["error"]["message"]


def test_a_folder_that_is_no_utf8_or_has_no_home_is_told(tmp_path: Path) -> None:
    told = {"~no-such-user-here/x": "NoHomeError", f"{tmp_path}/\udcff": "InvalidArgumentError"}
    for path, kind in told.items():
        for command in (["list", "--path", path], ["backup", path]):
            status, error = refusal(*command)
            assert (status, error["type"], bool(error["remedy"])) == (2, kind, True)


@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("command", ["list", "status"])
def test_no_free_descriptor_is_told_as_one_json_document(seeded_registry: Path, command: str, step: int) -> None:
    """Somewhere between too few to start and enough, opening the registry fails, or importing a module does."""
    for count in range(6 if step > 1 else 5, 16, step):
        limits = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({count}, {count})); "
        code = (
            f"import dspy_registry.cli.lookup, dspy_registry.cli.program as p; {limits}p.main(['{command}', '--json'])"
        )
        done = subprocess.run([COMMAND[0], "-c", code], capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        document = json.loads(done.stdout or done.stderr)
        assert document.get("error", document).get("remedy", "a document") != ""
    assert done.stdout
