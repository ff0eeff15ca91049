"""The command line: what it prints, how it fails, what it loads."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND, answer, refusal, run

from registry_store import ModuleInfo
from writer import RegistryWriter

pytestmark = pytest.mark.usefixtures("seeded_registry")

REASONING = ["dspy.ChainOfThought", "dspy.ReAct", "dspy.ProgramOfThought"]


def test_get_prints_fields_and_what_the_registry_keeps() -> None:
    done = run("get", "ChainOfThought")
    assert done.returncode == 0
    fields = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert fields["name"] == "dspy.ChainOfThought"
    assert fields["capabilities"] == "reasoning, step_by_step, explanation"
    assert fields["estimated_duration"] == "3000 ms"
    assert fields["requirements.gpu"] == "no"
    assert (fields["version"], fields["revision"], fields["source"]) == ("1", "1", "core")
    assert "updated" in fields


def test_get_as_json() -> None:
    module = answer("get", "predict")
    assert module["name"] == "dspy.Predict"
    assert module["requirements"] == {"memory": "low", "compute": "low", "gpu": False}
    assert module["provenance"]["version"] == 1
    assert set(module["provenance"]) == {"version", "revision", "updated_at", "source"}


def test_explain_says_which_source_gave_each_field(seeded_registry: Path) -> None:
    from writer.discovery import DiscoveryReport

    with RegistryWriter(seeded_registry) as writer:
        found = ModuleInfo("dspy.Predict", category="other", metadata={"class": "dspy.predict.Predict"})
        writer.apply_discovery(DiscoveryReport(modules=(found,)))
        writer.register_module(ModuleInfo("acme.X", metadata={"team": "search"}))
    explained = answer("get", "dspy.Predict", "--explain")["explained"]
    assert explained["category"] == "core"
    assert explained["metadata.class"] == "discovered"
    assert set(answer("get", "acme.X", "--explain")["explained"].values()) == {"client"}
    assert "other" not in run("get", "dspy.Predict", "--explain").stdout
    assert "dspy.predict.Predict  (discovered)" in run("get", "dspy.Predict", "--explain").stdout


def test_list_is_in_registration_order_and_aligned() -> None:
    lines = run("list").stdout.splitlines()
    assert lines[0].split() == ["NAME", "CATEGORY", "CAPABILITIES", "NEEDS", "POOL", "MS", "NATIVE", "SOURCE"]
    assert [line.split()[0] for line in lines[1:]] == [
        "dspy.Predict",
        *REASONING,
        "dspy.MIPROv2",
        "dspy.ColBERTv2",
    ]
    assert len({line.index("core") for line in lines[1:]}) == 1


def test_list_takes_conditions_and_may_be_empty() -> None:
    assert [module["name"] for module in answer("list", "--category", "reasoning")["modules"]] == REASONING
    assert answer("list", "--pool", "nowhere") == {"revision": 1, "modules": []}


@pytest.mark.parametrize(
    ("conditions", "names"),
    [
        (["--capability", "reasoning"], REASONING),
        (["--capability", "reasoning", "--capability", "tool_use"], ["dspy.ReAct"]),
        (["--capability", "reasoning", "--max-memory", "medium"], REASONING[:2]),
        (["--max-compute", "low"], ["dspy.Predict"]),
        (["--gpu"], ["dspy.ColBERTv2"]),
        (["--native"], ["dspy.Predict"]),
        (["--pool", "optimizer", "--no-native", "--no-gpu"], ["dspy.ProgramOfThought", "dspy.MIPROv2"]),
        (["--category", "retrieval"], ["dspy.ColBERTv2"]),
    ],
)
def test_find(conditions: list[str], names: list[str]) -> None:
    assert run("find", *conditions, "--names").stdout.split() == names


def test_find_that_finds_nothing_exits_with_1() -> None:
    done = run("find", "--capability", "levitation")
    assert (done.returncode, done.stdout) == (1, "")
    done = run("find", "--capability", "levitation", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (1, {"revision": 1, "modules": []})


def test_find_wants_a_condition() -> None:
    status, error = refusal("find")
    assert (status, error["message"]) == (2, "Give at least one condition; `list` shows all modules.")


def test_route_gives_the_recommendation_of_the_original() -> None:
    told = answer("route", "dspy.ColBERTv2", "--input-size", "5000")
    assert (told["pool_type"], told["timeout"], told["prefer_native"]) == ("neural", 900, False)
    assert answer("route", "Predict", "--optimize-latency")["prefer_native"] is True
    assert "900 ms" in run("route", "dspy.ColBERTv2", "--input-size", "5000").stdout


def test_watch_prints_a_document_per_change(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(ModuleInfo("acme.X"))
        writer.unregister_module("acme.X")
    done = run("watch", "--since", "1", "--timeout", "0", "--json")
    changes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(change["revision"], change["modules"][0]["action"]) for change in changes] == [
        (2, "registered"),
        (3, "unregistered"),
    ]
    assert len(run("watch", "--since", "1", "--count", "1").stdout.splitlines()) == 1


def test_watch_prints_a_change_when_it_is_committed(seeded_registry: Path) -> None:
    with (
        subprocess.Popen(
            [*COMMAND, "watch", "--json", "--since", "1"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process,
        RegistryWriter(seeded_registry) as writer,
    ):
        assert process.stdout is not None
        assert process.stderr is not None
        writer.register_module(ModuleInfo("acme.Live"))
        change = json.loads(process.stdout.readline())
        assert change["modules"] == [{"name": "acme.Live", "action": "registered", "version": 1}]
        process.send_signal(2)
        assert process.wait(30) == 130
        assert process.stderr.read().strip() == b""


@pytest.fixture
def damaged(seeded_registry: Path, tmp_path: Path) -> Path:
    """A copy of the registry, for damaging: the registry itself is looked over after the test."""
    return shutil.copytree(seeded_registry, tmp_path / "damaged")


def test_check_finds_a_sound_registry_sound(seeded_registry: Path) -> None:
    assert answer("check") == {"path": str(seeded_registry), "violations": []}
    assert run("check").stdout == f"{seeded_registry} is sound\n"


def test_check_finds_a_damaged_registry_damaged(damaged: Path) -> None:
    data = damaged / "data.mdb"
    content = data.read_bytes()
    assert content.count(b"tool_use") > 1
    data.write_bytes(content.replace(b"tool_use", b"tool_uSe"))
    done = run("check", "--path", damaged, "--json")
    assert done.returncode == 1
    violations = json.loads(done.stdout)["violations"]
    assert violations
    assert set(violations[0]) == {"invariant", "where", "message"}
    done = run("check", "--path", damaged)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, len(violations))


def test_check_survives_a_file_that_kills_its_reader(damaged: Path) -> None:
    data = damaged / "data.mdb"
    data.write_bytes(data.read_bytes()[: 3 * 4096])
    done = run("check", "--path", damaged)
    assert done.returncode == 1
    assert "cut short" in done.stdout


# Errors


def test_a_missing_module_exits_with_1_and_says_what_is_near() -> None:
    done = run("get", "dspy.ChainOfThougt")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: no module is registered as 'dspy.ChainOfThougt'.")
    assert "Did you mean dspy.ChainOfThought" in done.stderr
    status, error = refusal("route", "dspy.ChainOfThougt")
    assert (status, error["type"]) == (1, "UnknownModuleError")
    assert "dspy.ChainOfThought" in error["remedy"]


@pytest.mark.parametrize("command", [["get", "x"], ["list"], ["find", "--gpu"], ["route", "x"], ["watch"], ["check"]])
def test_a_missing_registry_is_told_with_its_remedy(command: list[str], tmp_path: Path) -> None:
    status, error = refusal(*command, "--path", tmp_path / "none")
    assert (status, error["type"]) == (1, "RegistryNotFoundError")
    assert "dspy-registry serve" in error["remedy"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gett"], "No such command 'gett'. Did you mean get?"),
        (["get"], "Missing argument 'NAME'"),
        (["get", "x", "--jsonn"], "--jsonn"),
        (["find", "--max-memory", "huge"], "'huge' is not one of"),
        (["route", "x", "--input-size", "-1"], "-1"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["alias"], "list, set or remove"),
    ],
)
def test_wrong_use_exits_with_2(arguments: list[str], said: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "--help'." in done.stderr


@pytest.mark.parametrize("arguments", [["gett"], ["get"], ["find"], ["find", "--max-memory", "huge"], ["alias", "set"]])
def test_wrong_use_is_told_in_json_too(arguments: list[str]) -> None:
    status, error = refusal(*arguments)
    assert status == 2
    assert "--help" in error["remedy"]


def test_no_command_shows_the_help_and_exits_with_2() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: dspy-registry" in done.stderr


@pytest.mark.parametrize("command", [["get", "Predict"], ["list"], ["check"], ["serve"], ["status"]])
def test_an_empty_path_is_an_error_that_names_it(command: list[str]) -> None:
    done = run(*command, "--path", "")
    assert done.returncode == 2
    assert "'--path'" in done.stderr
    assert "it is empty; name the registry's folder" in done.stderr


def test_a_watch_of_no_length_is_refused(seeded_registry: Path) -> None:
    status, error = refusal("watch", "--timeout", "nan")
    assert (status, error["type"]) == (2, "InvalidArgumentError")


def test_a_capability_that_no_module_has_comes_with_the_nearest(seeded_registry: Path) -> None:
    done = run("find", "-c", "resoning", "-c", "tool_use")
    assert (done.returncode, done.stdout) == (1, "")
    assert "no module has the capability 'resoning'. Did you mean reasoning" in done.stderr
    assert "'tool_use'" not in done.stderr
    assert "no module has the capability 'zzzz'.\n" in run("find", "-c", "zzzz", "--names").stderr
    assert run("find", "-c", "resoning", "--json").stderr == ""


def test_costs_are_rounded_for_people_only(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        info = ModuleInfo("a.B", estimated_duration=1234567, metadata={"cost_usd_per_call": 0.00123456})
        writer.register_module(info)
    shown = run("route", "a.B").stdout
    assert "estimated_cost       1235.0 compute-seconds" in shown
    assert "declared_cost_usd    0.001235\n" in shown
    assert answer("route", "a.B")["estimated_cost"] == 1234.567


@pytest.mark.parametrize("command", ["list", "list --json", "get Predict", "find -c none", "check", "stats", "--help"])
def test_a_closed_standard_output_is_no_traceback(seeded_registry: Path, command: str) -> None:
    shown = run(*command.split())
    line = shlex.join([*COMMAND, *command.split()])
    done = subprocess.run(["sh", "-c", f"{line} >&-"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (shown.returncode, "", shown.stderr)


def test_a_file_that_is_no_registry_is_named_once(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_text("hello")
    status, error = refusal("list", "--path", tmp_path)
    assert (status, error["type"]) == (1, "StoreError")
    assert error["message"].count(str(tmp_path)) == 1
    assert "MDB_INVALID" in error["message"]


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


# For people


def on_a_terminal(*arguments: str, columns: int = 100, **environment: str) -> str:
    """What a command prints on a terminal."""
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdout=terminal,
            stderr=terminal,
            stdin=terminal,
            env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **environment},
        )
    finally:
        os.close(terminal)
    said = b""
    try:
        while part := os.read(controller, 65536):
            said += part
    except OSError:  # the other end has been closed
        pass
    os.close(controller)
    process.wait(30)
    return said.decode()


def test_a_terminal_gets_colour_and_lines(seeded_registry: Path) -> None:
    shown = on_a_terminal("list")
    assert "\x1b[36mdspy.Predict" in shown
    assert "──" in shown
    assert "\x1b[" in on_a_terminal("get", "predict")
    assert "\x1b[31m" in on_a_terminal("get", "nothing")


def test_no_color_is_heeded() -> None:
    assert "\x1b[3" not in on_a_terminal("list", NO_COLOR="1")
    assert "\x1b[" not in on_a_terminal("get", "predict", NO_COLOR="1")


def test_a_narrow_terminal_does_without_the_last_columns() -> None:
    assert "source" in on_a_terminal("list", columns=200)
    narrow = on_a_terminal("list", columns=80)
    assert "source" not in narrow
    assert "dspy.ProgramOfThought" in narrow


def test_what_is_stored_does_not_steer_the_terminal(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(ModuleInfo("acme.[red]X", examples=("a\x1b[2Jb\nc",), metadata={"t": "\x9b31m\r"}))
    shown = on_a_terminal("get", "acme.[red]X")
    assert "\x1b[2J" not in shown
    assert "\x9b" not in shown
    assert r"a\x1b[2Jb" in shown
    assert "acme.[red]X" in on_a_terminal("list", columns=200)


def test_long_lists_are_not_drawn_but_whole(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_modules([ModuleInfo(f"acme.M{number}") for number in range(3000)])
    assert on_a_terminal("list").count("acme.M") == 3000
    assert len(answer("list")["modules"]) == 3006


# Loading


def loaded(*arguments: str) -> set[str]:
    """The modules in memory after a command."""
    code = f"""
import sys, json
from registry_store.cli import main
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
    assert "readers.cli.query" in modules
    assert modules & {"asyncio", "dspy", "rich", "watchfiles", "writer", "yaml"} == set()


def test_help_loads_neither_daemon_nor_discovery() -> None:
    modules = loaded("--help")
    assert {"readers.cli", "writer.cli"} <= modules
    assert modules & {"asyncio", "dspy", "rich", "watchfiles", "yaml", "writer.daemon", "writer.discovery"} == set()


def test_commands_of_another_package_join_in_and_a_broken_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "acme_commands.py").write_text(
        "import click\n@click.command()\ndef hello():\n    click.echo('hello')\ncommands = [hello]\n"
    )
    metadata = tmp_path / "acme-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[dspy_registry.commands]\nacme = acme_commands:commands\nbroken = acme_missing:commands\n"
    )
    done = run("hello", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (0, "hello\n")
    done = run("get", "predict", "--json", PYTHONPATH=str(tmp_path))
    assert json.loads(done.stdout)["name"] == "dspy.Predict"
    assert "warning: the commands of acme_missing:commands cannot be used" in done.stderr


# Help, version, completion


def test_version() -> None:
    from importlib.metadata import version

    assert run("--version").stdout == f"dspy-registry, version {version('dspy-module-registry')}\n"


def test_the_installed_script_is_this_command() -> None:
    script = Path(sys.executable).with_name("dspy-registry")
    done = subprocess.run([script, "get", "predict", "--json"], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["name"] == "dspy.Predict"


def test_help_shows_examples() -> None:
    shown = run("--help").stdout
    assert "dspy-registry route dspy.ColBERTv2 --input-size 5000" in shown
    assert "Exit status" in shown


def completed(*words: str) -> list[str]:
    """What bash is offered for the last word."""
    done = run(
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
    assert completed("get", "--path", str(tmp_path), "dspy") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    done = run("completion", shell)
    assert done.returncode == 0
    assert f"_DSPY_REGISTRY_COMPLETE={shell}_complete" in done.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_unusual_words_can_be_looked_for() -> None:
    assert run("find", "--capability", "a\tb").returncode == 1
    assert run("get", "x" * 300).returncode == 1


def test_every_option_is_documented() -> None:
    import click

    from registry_store.cli import main

    page = (Path(__file__).resolve().parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")

    def options(command: click.Command) -> set[str]:
        own = {name for option in command.params for name in option.opts if name.startswith("--")}
        if isinstance(command, click.Group):
            context = click.Context(command)
            return own.union(*(options(command.get_command(context, name)) for name in command.list_commands(context)))
        return own

    found = options(main)
    assert {"--path", "--json", "--expected-version"} <= found
    assert sorted(option for option in found if f"`{option}" not in page) == []
