"""What a command loads, and what the command line tells of itself: version, help, completion."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.command import run, run_process

pytestmark = pytest.mark.usefixtures("seeded_registry")


# Loading


def loaded(*arguments: str) -> set[str]:
    """The modules in memory after a command."""
    code = f"""
import sys, json
from dspy_registry.cli.program import main
try:
    main({list(arguments)!r})
except SystemExit as end:
    assert not end.code, end.code
print("\\n" + json.dumps(sorted(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    [["get", "Predict"], ["get", "Predict", "--json"], ["list"], ["find", "--gpu", "--json"], ["route", "Predict"]],
)
def test_a_lookup_loads_nothing_it_does_not_need(arguments: list[str]) -> None:
    modules = loaded(*arguments)
    assert ("dspy_registry.cli.route" if arguments[0] == "route" else "dspy_registry.cli.lookup") in modules
    assert modules & {"asyncio", "dspy", "rich", "watchfiles", "dspy_registry.writer", "yaml"} == set()


def test_help_loads_neither_daemon_nor_discovery() -> None:
    modules = loaded("--help")
    assert {"dspy_registry.cli.serve", "dspy_registry.cli.lookup"} <= modules
    assert modules & {"asyncio", "dspy", "rich", "watchfiles", "yaml"} == set()
    assert not [name for name in modules if name.startswith("dspy_registry.writer.")]


# Help, version, completion


def test_version() -> None:
    from importlib.metadata import version

    assert run_process("--version").stdout == f"dspy-registry, version {version('dspy-module-registry')}\n"


def test_the_installed_script_is_this_command() -> None:
    script = Path(sys.executable).with_name("dspy-registry")
    done = subprocess.run([script, "get", "predict", "--json"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["name"] == "dspy.Predict"


def test_help_shows_examples() -> None:
    shown = run("--help").stdout
    assert "dspy-registry route dspy.ColBERTv2 --input-size 5000" in shown
    assert "Exit status" in shown


def completed(*words: str, using: Callable[..., subprocess.CompletedProcess[str]] = run) -> list[str]:
    """What bash is offered for the last word."""
    done = using(
        _DSPY_REGISTRY_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(("dspy-registry", *words)),
        COMP_CWORD=str(len(words)),
    )
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.split()]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ge"], ["get"]),
        (["get", "dspy.P"], ["dspy.Predict", "dspy.ProgramOfThought"]),
        (["get", "Chain"], ["dspy.ChainOfThought"]),
        (["unregister", "dspy.Re"], ["dspy.ReAct"]),
        (["find", "--capability", "s"], ["semantic_search", "step_by_step", "structured_output"]),
        (["find", "--category", "re"], ["reasoning", "retrieval"]),
        (["list", "--pool", ""], ["general", "neural", "optimizer"]),
        (["find", "--max-memory", "m"], ["medium"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_completion_offers(words: list[str], offered: list[str]) -> None:
    assert completed(*words) == offered


def test_completion_without_a_registry_offers_nothing(tmp_path: Path) -> None:
    assert completed("get", "--path", str(tmp_path), "dspy", using=run_process) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert f"_DSPY_REGISTRY_COMPLETE={shell}_complete" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_every_option_is_documented() -> None:
    import click

    from dspy_registry.cli.program import main

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

    def options(command: click.Command) -> set[str]:
        own = {name for option in command.params for name in option.opts if name.startswith("--")}
        if isinstance(command, click.Group):
            context = click.Context(command)
            return own.union(*(options(command.get_command(context, name)) for name in command.list_commands(context)))
        return own

    found = options(main)
    assert {"--path", "--json", "--expected-version"} <= found
    assert sorted(option for option in found if f"`{option}" not in page) == []
