"""What the commands that read print: for programs, and for people on a terminal."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, RegistryWriter
from tests.support.command import COMMAND, answer, refusal, run, run_process

pytestmark = pytest.mark.usefixtures("seeded_registry")

REASONING = ["dspy.ChainOfThought", "dspy.ReAct", "dspy.ProgramOfThought"]


def test_get_prints_fields_and_what_the_registry_keeps() -> None:
    done = run_process("get", "ChainOfThought")
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
    assert set(module["provenance"]) == {"version", "revision", "updated_at", "source", "by"}


def test_explain_says_which_source_gave_each_field(seeded_registry: Path) -> None:
    from dspy_registry.writer.discovery.report import DiscoveryReport

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
    assert (status, error["type"]) == (2, "UsageError")


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
        (changed,) = change["modules"]
        assert (changed["name"], changed["action"], changed["version"]) == ("acme.Live", "registered", 1)
        assert (changed["source"], changed["by"]) == ("client", [os.geteuid(), os.getpid()])
        process.send_signal(2)
        assert process.wait(30) == 130
        assert process.stderr.read().strip() == b""


@pytest.fixture
def damaged(seeded_registry: Path, tmp_path: Path) -> Path:
    """A copy of the registry, for damaging: the registry itself is looked over after the test."""
    return shutil.copytree(seeded_registry, tmp_path / "damaged")


def test_check_finds_a_sound_registry_sound(seeded_registry: Path) -> None:
    assert answer("check") == {
        "path": str(seeded_registry),
        "violations": [],
        "old_names": {"modules": [], "aliases": []},
    }
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


# For people


def test_costs_are_rounded_for_people_only(seeded_registry: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        info = ModuleInfo("a.B", estimated_duration=1234567, metadata={"cost_usd_per_call": 0.00123456})
        writer.register_module(info)
    shown = run("route", "a.B").stdout
    assert "estimated_cost       1235.0 compute-seconds" in shown
    assert "declared_cost_usd    0.001235\n" in shown
    assert answer("route", "a.B")["estimated_cost"] == 1234.567


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


def test_route_chooses_among_modules() -> None:
    told = answer("route", "--capability", "reasoning", "--deadline", "8000", "--exclude", "ReAct")
    assert (told["name"], told["version"], told["degraded"]) == ("dspy.ChainOfThought", 1, False)
    assert [each["name"] for each in told["alternatives"]] == ["dspy.ChainOfThought"]
    assert told["alternatives"][0]["recommendation"]["timeout"] == 3600
    assert {each["name"]: each["reason"] for each in told["excluded"]} == {
        "dspy.ReAct": "exclude",
        "dspy.ProgramOfThought": "deadline",
    }
    assert answer("route", "predict", "ReAct", "--prefer", "reliability")["name"] == "dspy.Predict"
    shown = run("route", "--capability", "reasoning", "--deadline", "8000")
    assert "136.9" in shown.stdout
    assert "dspy.ProgramOfThought (deadline)" in shown.stderr


def test_route_explains_itself() -> None:
    shown = run("route", "predict", "--explain").stdout
    assert "√1000 × √1 / (1 - 0.02)" in shown
    assert answer("route", "predict", "--explain")["explained"] in shown


def test_route_needs_something_to_choose_among() -> None:
    assert run("route").returncode == 2
    assert run("route", "predict", "ReAct", "--optimize-latency").returncode == 2
    assert run("route", "--capability", "flying").returncode == 1
