"""One rule for exit statuses: 2 means that the command line itself is wrong, and 1 everything else that is not done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from dspy_registry import ModuleInfo, Policy, RegistryWriter
from dspy_registry.cli.program import main
from dspy_registry.registry_store import errors
from dspy_registry.registry_store.errors import InvalidArgumentError, NotPossibleError, RegistryError
from tests.support.command import run
from tests.support.daemon_process import daemon

FILLED = {"version": "1", "old": "1", "new": "2", "shell": "bash", "target": "a.b:c", "versions": "1", "seconds": "1m"}
PLACES = ("folder", "backup", "directory", "into")
NEEDED = {
    "find": "--gpu",
    "register": "--name acme.Qa",
    "policy set": "--max-concurrency 1",
    "cluster join": "--cluster http://127.0.0.1:1",
    "cluster seed": "--cluster http://127.0.0.1:1",
    "route": "acme.Qa",
}
MAKES_ONE = {"serve", "discover", "demo", "restore", "repair", "ui"}
"""These need no registry that is there already, or make one."""


def leaves(command: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with the words that call it."""
    if not isinstance(command, click.Group):
        yield words, command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        found = command.get_command(context, name)
        assert found is not None
        yield from leaves(found, (*words, name))


COMMANDS = {" ".join(words): command for words, command in leaves(main)}


@pytest.mark.parametrize("words", COMMANDS)
def test_an_option_that_there_is_not_is_wrong_usage(words: str) -> None:
    done = run(*words.split(), "--no-such-option")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr


@pytest.mark.parametrize(
    "words", [words for words, command in COMMANDS.items() if any(p.required for p in command.params)]
)
def test_an_argument_that_is_missing_is_wrong_usage(words: str) -> None:
    assert run(*words.split()).returncode == 2


def filled(words: str, place: Path) -> list[str]:
    """The words with something for each argument and option that must be there."""
    given = words.split()
    for param in COMMANDS[words].params:
        if param.required:
            name = param.name or ""
            value = str(place) if name in PLACES else FILLED.get(name, "acme.Qa")
            given += [value] if isinstance(param, click.Argument) else [param.opts[0], value]
    return given


@pytest.mark.parametrize(
    "words",
    [
        words
        for words, command in COMMANDS.items()
        if words.split()[0] not in MAKES_ONE and any(p.name == "path" for p in command.params)
    ],
)
def test_a_registry_that_is_not_there_is_no_wrong_usage(words: str, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    extra = ["--yes"] if any(param.name == "yes" for param in COMMANDS[words].params) else []
    place = tmp_path / ("there" if words == "manifests check" else "new")
    extra += NEEDED.get(words, "").split()
    done = run(*filled(words, place), *extra, "--path", tmp_path / "none", DSPY_REGISTRY_WAIT="0")
    assert done.returncode == 1, (done.stdout, done.stderr)


@pytest.fixture
def registry(registry_folder: Path) -> Path:
    with RegistryWriter(registry_folder) as writer:
        writer.register_module(ModuleInfo("acme.Qa"))
        writer.register_module(ModuleInfo("acme.Qa", estimated_duration=2))
        writer.set_label("acme.Qa", "live", {1: 50, 2: 50})
        writer.set_policy("acme.Qa", Policy(max_concurrency=1))
    return registry_folder


WRONG = [
    "register --name a@b --embedded",
    "register --name acme.Qb --metadata [] --embedded",
    "rename acme.Qa a@b --embedded",
    "alias set a@b acme.Qa --embedded",
    "label set acme.Qa 9x 1 --embedded",
    "label set acme.Qa live 1=-1 2=3 --embedded",
    "policy set acme.Qa --max-concurrency 0 --embedded",
    "find --max-memory x",
    "route --prefer x --capability reasoning",
    "watch --timeout nan",
    "serve --metrics nothing",
    "cluster join --cluster nothing",
]
NO = [
    "get acme.Nobody",
    "find --capability nothing",
    "route --capability nothing",
    "rename acme.Qa dspy.Predict --embedded",
    "alias set dspy.Predict acme.Qa --embedded",
    "alias remove nothing --embedded",
    "label set acme.Qa live 9 --embedded",
    "label remove acme.Qa nothing --embedded",
    "label set acme.Qa live 1 --expected 2 --embedded",
    "release acme.Qa --embedded",
    "rollback acme.Qa --to 9 --embedded",
    "diff acme.Qa 1 9",
    "program show acme.Qa",
    "cluster status",
]


@pytest.mark.parametrize(("status", "line"), [(2, line) for line in WRONG] + [(1, line) for line in NO])
def test_the_status_says_whose_fault_it_is(registry: Path, status: int, line: str) -> None:
    if "--metrics" in line:
        pytest.importorskip("prometheus_client")
    done = run(*line.split(), "--path", registry, DSPY_REGISTRY_WAIT="0")
    assert done.returncode == status, (done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (1, "rollout acme.Qa 2 --label live"),  # it names two versions
        (1, "rollout abort acme.Qa --label live"),
        (1, "rollout abort acme.Qb --label live"),
        (2, "rollout acme.Qa 2 --label live --steps 50,10"),
        (2, "rollout acme.Qa 2 --label 9x"),
        (1, "release acme.Qa"),
        (1, "rename acme.Qa dspy.Predict"),
    ],
)
def test_what_a_daemon_refuses_has_the_same_statuses(registry: Path, status: int, line: str) -> None:
    with daemon(registry):
        done = run(*line.split(), "--path", registry)
    assert done.returncode == status, (done.stdout, done.stderr)
    assert "acme.Qb" not in line or "acme.Qa" in done.stderr  # the closest name


def test_a_file_with_wrong_modules_is_no_wrong_usage(registry: Path, tmp_path: Path) -> None:
    file = tmp_path / "modules.json"
    file.write_text('{"name": "a@b"}')
    assert run("register", file, "--embedded", "--path", registry).returncode == 1


def test_only_what_is_wrong_by_itself_is_wrong_usage() -> None:
    """Of all errors: those of arguments, but for what is not possible now."""
    kinds = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, RegistryError)]
    usage = {each for each in kinds if issubclass(each, InvalidArgumentError)}
    assert {each.__name__ for each in usage} == {"InvalidArgumentError", "NoHomeError", "NotPossibleError"}
    assert issubclass(NotPossibleError, InvalidArgumentError)


@pytest.mark.parametrize("group", ["rollout", "cluster", "manifests"])
def test_a_group_without_a_command_shows_its_help(group: str) -> None:
    done = run(group)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: ")
    assert "Commands:" in done.stderr


def test_a_folder_given_as_an_argument_leads_to_the_option(tmp_path: Path) -> None:
    done = run("check", tmp_path)
    assert done.returncode == 2
    assert "The registry's folder is given with --path." in done.stderr
    assert "--path" not in run("schema", tmp_path).stderr


@pytest.mark.parametrize(("word", "meant"), [("list", "status"), ("abrot", "abort")])
def test_a_word_that_is_no_command_of_rollouts_is_not_taken_for_a_module(word: str, meant: str) -> None:
    done = run("rollout", word)
    assert (done.returncode, "No such command" in done.stderr) == (2, True)
    assert f"Did you mean {meant}?" in done.stderr
    assert "Missing" in run("rollout", "list", "4").stderr  # a module may be called so
