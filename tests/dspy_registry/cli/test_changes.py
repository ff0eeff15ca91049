"""The commands that change a registry: through a real daemon, and without one."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspy_registry import ModuleInfo, Registry, RegistryWriter, Requirements
from dspy_registry.cli.discover import _show
from dspy_registry.writer.discovery.report import DEFAULT_TIMEOUT, DiscoveryFailure, DiscoveryReport
from tests.support.command import answer, daemon, refusal, run, run_process

MODULE = {
    "name": "acme.Summarise",
    "category": "prediction",
    "capabilities": ["summarisation"],
    "requirements": {"memory": "low", "compute": "medium", "gpu": False, "tokens": 5},
    "pool_type": "general",
    "estimated_duration": 1200,
    "native_available": False,
    "examples": ["acme.Summarise()"],
    "metadata": {"team": "search"},
}
INFO = ModuleInfo(
    name="acme.Summarise",
    category="prediction",
    capabilities=("summarisation",),
    requirements=Requirements(memory="low", compute="medium", extra={"tokens": 5}),
    estimated_duration=1200,
    examples=("acme.Summarise()",),
    metadata={"team": "search"},
)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A registry that a daemon serves; $DSPY_REGISTRY names it."""
    path = tmp_path / "served"
    monkeypatch.setenv("DSPY_REGISTRY", str(path))
    with daemon(path):
        yield path


def test_through_the_daemon_from_first_to_last(served: Path) -> None:
    told = answer("register", "-", stdin=json.dumps(MODULE))
    assert told == {"revision": 2, "names": ["acme.Summarise"]}
    with Registry(served) as registry:
        assert registry["acme.Summarise"] == INFO
        assert answer("alias", "set", "sum", "acme.Summarise") == {"revision": 3}
        assert registry.get_module("sum") == INFO
        assert answer("alias", "list") == {
            "aliases": [{"alias": "sum", "module": "acme.Summarise", "source": "client"}]
        }
        assert answer("alias", "remove", "sum") == {"revision": 4}
        assert answer("unregister", "acme.Summarise") == {
            "revision": 5,
            "names": ["acme.Summarise"],
            "unknown": [],
            "declared_by": {},
            "labels": {},
        }
        assert "acme.Summarise" not in registry
    assert answer("check")["violations"] == []


def test_status_of_a_daemon(served: Path) -> None:
    told = answer("status")
    assert told["registry"]["path"] == str(served)
    assert (told["registry"]["revision"], told["registry"]["modules"]) == (1, 6)
    assert told["registry"]["writer_pid"] == told["daemon"]["pid"]
    assert told["daemon"]["revision"] == 1
    done = run("status")
    assert done.returncode == 0
    assert f"daemon.pid           {told['daemon']['pid']}" in done.stdout


def test_a_second_daemon_is_refused_and_names_the_first(served: Path) -> None:
    done = run_process("serve")
    assert done.returncode == 1
    assert str(answer("status")["daemon"]["pid"]) in done.stderr
    status, error = refusal("register", "--name", "acme.X", "--embedded")
    assert (status, error["type"]) == (1, "WriterLockedError")


def test_a_refused_change_says_why(served: Path) -> None:
    status, error = refusal("register", "--name", "acme.X", "--capability", "Not A Word")
    assert (status, error["type"]) == (2, "UsageError")
    assert "capabilities" in error["message"]
    status, error = refusal("register", "--name", "dspy.Predict", "--expected-version", "7")
    assert (status, error["type"]) == (1, "ConflictError")
    assert re.search(r"\b1\b.*\b7\b", error["message"])
    status, error = refusal("alias", "set", "x", "acme.Missing")
    assert (status, error["type"]) == (1, "UnknownModuleError")
    assert answer("status")["registry"]["revision"] == 1


def test_an_alias_cannot_shadow_a_full_name(served: Path) -> None:
    status, error = refusal("alias", "set", "dspy.ReAct", "dspy.Predict")
    assert (status, error["type"]) == (1, "InvalidModuleError")
    assert "dspy.ReAct" in error["message"]
    assert answer("alias", "list") == {"aliases": []}


def test_an_unknown_name_comes_with_the_closest_ones(served: Path) -> None:
    for command in (["unregister", "Predict"], ["alias", "set", "zz", "dspy.Predct"]):
        done = run(*command)
        assert done.returncode == 1
        assert "dspy.Predict" in done.stderr
    status, error = refusal("alias", "remove", "zz")
    assert (status, error["type"]) == (1, "UnknownAliasError")
    assert "'zz'" in error["message"]
    assert error["remedy"]


def test_expected_version_lets_an_update_pass(served: Path) -> None:
    assert answer("register", "--name", "acme.X", "--expected-version", "0")["revision"] == 2
    told = answer("register", "--name", "acme.X", "--duration", "7", "--expected-version", "1")
    assert told["revision"] == 3
    assert answer("get", "acme.X")["provenance"]["version"] == 2


def test_unregister_goes_on_after_an_unknown_name(served: Path) -> None:
    done = run("unregister", "acme.Missing", "dspy.ReAct", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) == {
        "revision": 2,
        "names": ["dspy.ReAct"],
        "unknown": ["acme.Missing"],
        "declared_by": {},
        "labels": {},
    }
    assert json.loads(done.stderr)["error"]["type"] == "UnknownModuleError"


def test_a_large_file_is_one_commit(served: Path, tmp_path: Path) -> None:
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps({**MODULE, "name": f"acme.M{number}"}) + "\n" for number in range(5000)))
    told = answer("register", file)
    assert (told["revision"], len(told["names"])) == (2, 5000)
    with Registry(served) as registry:
        assert len(registry) == 5006


def test_one_wrong_module_keeps_all_out(served: Path, tmp_path: Path) -> None:
    file = tmp_path / "modules.json"
    file.write_text(json.dumps([{"name": "acme.Good"}, {"name": "acme.Bad", "estimated_duration": -1}]))
    status, error = refusal("register", file)
    assert (status, error["type"]) == (1, "InvalidModuleError")
    assert "acme.Bad" in error["message"]
    assert run("get", "acme.Good").returncode == 1


def test_without_a_daemon(seeded_registry: Path) -> None:
    for command in (["register", "--name", "acme.X"], ["unregister", "x"], ["alias", "set", "a", "b"]):
        status, error = refusal(*command)
        assert (status, error["type"]) == (1, "WriterUnavailableError")
        assert error["remedy"]
    done = run("status", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["daemon"] is None
    assert "none answers" in run("status").stdout
    assert answer("register", "--name", "acme.X", "--embedded")["revision"] == 2
    assert answer("unregister", "acme.X", "--embedded")["revision"] == 3


def test_a_killed_daemon_is_no_daemon(tmp_path: Path) -> None:
    path = tmp_path / "registry"
    with daemon(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    status, error = refusal("register", "--name", "acme.X", "--path", path)
    assert (status, error["type"]) == (1, "WriterUnavailableError")
    with daemon(path):
        assert answer("register", "--name", "acme.X", "--path", path)["names"] == ["acme.X"]


# Files


YAML = """
name: acme.Summarise
category: prediction
capabilities: [summarisation]
requirements: {memory: low, compute: medium, gpu: false, tokens: 5}
estimated_duration: 1200
examples: [acme.Summarise()]
metadata: {team: search}
"""
TOML = """
[[modules]]
name = "acme.Summarise"
category = "prediction"
capabilities = ["summarisation"]
requirements = { memory = "low", compute = "medium", gpu = false, tokens = 5 }
estimated_duration = 1200
examples = ["acme.Summarise()"]
metadata = { team = "search" }
"""


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("one.json", json.dumps(MODULE, indent=2)),
        ("list.json", json.dumps([MODULE])),
        ("found.json", json.dumps({"modules": [MODULE], "failures": []})),
        ("lines.json", f"{json.dumps(MODULE)}\n\n{json.dumps({'name': 'acme.Other'})}\n"),
        ("lines.jsonl", json.dumps(MODULE)),
        ("plain", json.dumps(MODULE)),
        ("one.yaml", YAML),
        ("two.yml", f"---\n{YAML}\n---\nname: acme.Other\n"),
        ("one.toml", TOML),
    ],
)
def test_files_of_every_format(name: str, content: str, seeded_registry: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(content)
    assert answer("register", file, "--embedded")["names"][0] == "acme.Summarise"
    with Registry(seeded_registry) as registry:
        assert registry["acme.Summarise"] == INFO


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.json", "{", "m.json"),
        ("m.json", "[]", "m.json"),
        ("m.json", "", "m.json"),
        ("m.json", '{"category": "x"}', "line 1: name"),
        ("m.json", '[{"name": "a"}, {"name": "b", "capabilitys": []}]', "line 1: [1].capabilitys of b: "),
        ("m.json", "[1]", "line 1: [0]: "),
        ("m.json", '{"name": 5, "requirements": [1]}', "requirements"),
        ("m.yaml", "a: [", "m.yaml"),
        ("m.toml", "name = 'x'\nmetadata = {since = 2024-01-01}", "line 2: metadata.since of x: "),
        ("m.toml", "name = ", "m.toml"),
        ("m.json", "\x00\xff", "m.json"),
    ],
)
def test_a_file_that_cannot_be_taken(name: str, content: str, said: str, seeded_registry: Path, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(content.encode("latin-1"))
    status, error = refusal("register", file, "--embedded")
    assert (status, error["type"]) == (1, "InvalidModuleError")
    assert said in error["message"]
    with Registry(seeded_registry) as registry:
        assert (len(registry), registry.revision) == (6, 1)


def test_what_is_printed_can_be_registered_again(seeded_registry: Path, tmp_path: Path) -> None:
    with RegistryWriter(seeded_registry) as writer:
        writer.register_module(INFO)
    copy = tmp_path / "copy"
    shown = run("list", "--json").stdout
    assert len(answer("register", "-", "--embedded", "--path", copy, stdin=shown)["names"]) == 7
    one = run("get", "acme.Summarise", "--json", "--explain").stdout
    answer("register", "-", "--embedded", "--path", copy, stdin=one)
    with Registry(seeded_registry) as registry, Registry(copy) as copied:
        assert dict(registry) == dict(copied)


def test_one_module_from_options(seeded_registry: Path) -> None:
    answer(
        *("register", "--embedded", "--name", "acme.Summarise", "--category", "prediction"),
        *("--capability", "summarisation", "--memory", "high", "--compute", "medium", "--gpu", "--pool", "neural"),
        *("--duration", "1200", "--native", "--example", "a", "--example", "b", "--metadata", '{"team": "search"}'),
    )
    with Registry(seeded_registry) as registry:
        assert registry["acme.Summarise"] == ModuleInfo(
            name="acme.Summarise",
            category="prediction",
            capabilities=("summarisation",),
            requirements=Requirements(memory="high", compute="medium", gpu=True),
            pool_type="neural",
            estimated_duration=1200,
            native_available=True,
            examples=("a", "b"),
            metadata={"team": "search"},
        )


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--category", "x"],
        ["missing.json"],
        ["--name", "x", "--metadata", "[1]"],
        ["--name", "x", "--memory", "enormous"],
        ["--name", "x", "--duration", "soon"],
    ],
)
def test_register_used_wrongly(arguments: list[str], seeded_registry: Path) -> None:
    assert refusal("register", *arguments, "--embedded")[0] == 2


def test_a_file_or_options_not_both(seeded_registry: Path, tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps(MODULE))
    assert refusal("register", file, "--name", "x", "--embedded")[0] == 2
    file.write_text(json.dumps([{"name": "a"}, {"name": "b"}]))
    assert refusal("register", file, "--expected-version", "1", "--embedded")[0] == 2


# Discovery


@pytest.fixture
def workers_python(tmp_path: Path) -> str:
    """An interpreter that cannot see this project, nor DSPy."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_discover_without_dspy_needs_no_registry_and_finds_nothing(workers_python: str, tmp_path: Path) -> None:
    done = run("discover", "--python", workers_python, "--json", "--path", tmp_path / "none")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["modules"], found["dspy_version"]) == ([], None)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [(["--python", "/nowhere/python"], "DiscoveryError"), (["--timeout", "-1"], "InvalidArgumentError")],
)
def test_discover_that_cannot_look(arguments: list[str], kind: str) -> None:
    status, error = refusal("discover", *arguments)
    assert (status, error["type"]) == (2 if kind == "InvalidArgumentError" else 1, kind)


def test_discover_has_time_for_the_first_import_of_dspy() -> None:
    assert DEFAULT_TIMEOUT >= 30
    for command in ("discover", "serve"):
        assert f"Default: {DEFAULT_TIMEOUT:g}." in " ".join(run(command, "--help").stdout.split())


@pytest.mark.parametrize(
    ("looked_through", "version", "said"),
    [
        ((), None, "it is not known whether python3 has DSPy"),
        (("dspy",), None, "python3 has no DSPy"),
        (("dspy",), "3.0.1", "python3 has DSPy 3.0.1"),
    ],
)
def test_discover_says_no_more_of_dspy_than_it_knows(
    looked_through: tuple[str, ...], version: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = (DiscoveryFailure("dspy", "not finished within the time limit"),)
    report = DiscoveryReport(failures=failures, python="python3", dspy_version=version, looked_through=looked_through)
    _show(report, {})
    assert f"0 modules found; {said}\n" in capsys.readouterr().err


@pytest.mark.dspy
def test_discovered_modules_are_registered_through_the_daemon(served: Path) -> None:
    found = answer("discover", "--timeout", "60")
    assert found["failures"] == []
    names = {module["name"] for module in found["modules"]}
    assert {"dspy.Predict", "dspy.ChainOfThought", "dspy.ReAct"} <= names
    told = answer("discover", "--timeout", "60", "--register")["registered"]
    assert (set(told["declared"]), told["refused"]) == (names, [])
    with Registry(served) as registry:
        assert registry.revision == told["revision"]
        assert names <= set(registry)
        assert registry.describe("dspy.Predict").provenance.source == "core"


@pytest.mark.dspy
def test_discover_shows_a_table() -> None:
    done = run("discover", "--timeout", "60")
    assert done.returncode == 0
    assert "dspy.ChainOfThought" in done.stdout
    assert "modules found" in done.stderr


def test_serve_logs_to_stderr_and_leaves_stdout_alone(tmp_path: Path) -> None:
    with daemon(tmp_path / "registry") as process:
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr is not None
        assert "ended" in process.stderr.read()
