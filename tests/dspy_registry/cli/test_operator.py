"""What an operator sees: what is wrong, who changed what, and tables on a narrow terminal."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import click
import pytest

from dspy_registry import (
    InvalidArgumentError,
    ModuleInfo,
    Registry,
    RegistryNotFoundError,
    RegistryWriter,
    WriterClient,
)
from dspy_registry.cli.drawing import Cell, Column, drawn
from dspy_registry.cli.status import problems
from dspy_registry.registry_store.changes import Change
from dspy_registry.registry_store.disk import COMMIT_BYTES
from dspy_registry.writer.daemon.change_lines import LINES_OF_A_CHANGE, JsonFormatter, log_change
from tests.support.command import COMMAND, answer, run
from tests.support.daemon_process import PATIENT, daemon

OWN = [os.geteuid(), os.getpid()]


# Status


def facts(**daemon: Any) -> dict[str, Any]:
    well = {"hanging": False, "sections": {"usage": {"batches": 1}, "manifests": {"errors": []}}}
    return {
        "registry": {"free_bytes": COMMIT_BYTES, "missing": None},
        "daemon": {**well, **daemon},
        "unreachable": None,
    }


def test_all_that_an_operator_must_mend_is_a_problem() -> None:
    assert list(problems(facts())) == []
    assert len(list(problems(facts(hanging=True)))) == 1
    for section in ({"errors": [{"file": "a"}]}, {"error": "the last backup failed"}):
        assert len(list(problems(facts(sections={"part": section})))) == 1
    for registry, expected in (
        ({"free_bytes": COMMIT_BYTES - 1, "missing": None}, 1),
        ({"free_bytes": None, "missing": None}, 0),
        ({"free_bytes": COMMIT_BYTES, "missing": "revision 7 was lost"}, 1),
    ):
        assert len(list(problems({**facts(), "registry": registry}))) == expected
    away = {"type": "WriterTimeoutError", "message": "silent", "remedy": ""}
    assert "silent" in next(problems({**facts(), "daemon": None, "unreachable": away}))


def test_a_daemon_that_is_stopped_is_told_from_one_that_is_well(registry_folder: Path) -> None:
    with daemon(registry_folder) as served:
        assert answer("status", "--path", registry_folder)["problems"] == []
        with served.stopped():
            done = run("status", "--wait", "0.3", "--json", "--path", registry_folder)
        assert done.returncode == 1
        assert json.loads(done.stdout)["unreachable"]["type"] == "WriterTimeoutError"


def test_status_waits_until_all_is_well(registry_folder: Path, tmp_path: Path) -> None:
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    broken = manifests / "a.toml"
    broken.write_text("what?")
    serve = [*COMMAND, "serve", "--path", str(registry_folder), "--manifests", str(manifests)]
    process = subprocess.Popen(serve, stderr=subprocess.DEVNULL)
    try:
        with Registry(registry_folder, wait=PATIENT):
            pass
        with WriterClient(registry_folder, timeout=PATIENT) as client:
            while not client.status().sections["manifests"]["errors"]:
                time.sleep(0.05)
        assert run("status", "--path", registry_folder).returncode == 1
        broken.write_text("")
        mend = threading.Timer(0.2, broken.unlink)
        mend.start()
        assert run("status", "--wait", str(PATIENT), "--path", registry_folder).returncode == 0
        mend.join()
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


# Waiting for a registry


def test_a_reader_waits_for_a_registry_that_is_not_there_yet(registry_folder: Path) -> None:
    serve = [*COMMAND, "serve", "--path", str(registry_folder)]
    process = subprocess.Popen(serve, stderr=subprocess.DEVNULL)
    try:
        with Registry(registry_folder, wait=PATIENT) as registry:
            assert len(registry) == 6
    finally:
        process.terminate()
        process.wait(30)


def test_a_wait_ends_with_the_error_of_what_is_missing(tmp_path: Path) -> None:
    for wait in (0.0, 0.05):
        with pytest.raises(RegistryNotFoundError):
            Registry(tmp_path / "none", wait=wait)
    for wrong in (-1.0, float("nan")):
        with pytest.raises(InvalidArgumentError, match="wait"):
            Registry(tmp_path / "none", wait=wrong)


# Who changed what


def test_changes_say_who_asked_and_watch_names_aliases_and_sources(registry_folder: Path) -> None:
    with daemon(registry_folder) as served, served.client() as client, Registry(registry_folder) as registry:
        start = registry.revision
        client.register_module(ModuleInfo("acme.A"))
        client.register_module(ModuleInfo("acme.B"))
        client.set_alias("nick", "acme.A")
        client.set_alias("nick", "acme.B")
        client.remove_alias("nick")
        client.unregister_module("acme.A")
        changes = list(registry.watch(start, timeout=0))
        assert {change.by for change in changes} == {(tuple(OWN),)}
        assert [(m.action, m.source, m.by) for change in changes for m in change.modules] == [
            ("registered", "client", tuple(OWN)),
            ("registered", "client", tuple(OWN)),
            ("unregistered", "client", tuple(OWN)),
        ]
        aliases = [(alias.old, alias.new, alias.source) for change in changes for alias in change.aliases]
        assert aliases == [(None, "acme.A", "client"), ("acme.A", "acme.B", "client"), ("acme.B", None, "client")]
        shown = run("watch", "--since", str(start), "--timeout", "0", "--path", registry_folder).stdout
        assert "acme.A -> acme.B" in shown
        assert f"process {OWN[1]}" in shown
        assert answer("history", "acme.B", "--path", registry_folder)["versions"][0]["provenance"]["by"] == OWN
        assert answer("get", "dspy.Predict", "--path", registry_folder)["provenance"]["by"] != OWN


def test_the_daemons_log_has_a_line_for_each_change_as_text_and_as_json(registry_folder: Path) -> None:
    serve = [*COMMAND, "serve", "--path", str(registry_folder), "--log-format", "json"]
    process = subprocess.Popen(serve, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        with Registry(registry_folder, wait=PATIENT):
            pass
        with WriterClient(registry_folder, timeout=PATIENT) as client:
            client.register_module(ModuleInfo("acme.A"))
        process.send_signal(signal.SIGTERM)
        lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    finally:
        process.wait(30)
        process.stderr.close()
    (line,) = [line for line in lines if line.get("name") == "acme.A"]
    assert (line["level"], line["action"], line["version"], line["source"]) == ("info", "registered", 1, "client")
    assert line["by"] == OWN
    assert all({"time", "level", "message"} <= line.keys() for line in lines)


def test_the_log_names_changed_policies_and_overrides(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dspy_registry")
    log_change(Change(7, 0, by=(tuple(OWN),), policies=("acme.*",), overrides=("acme.A",)))  # type: ignore[arg-type]
    policy, override = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert (policy["action"], policy["policy"], policy["by"]) == ("policy changed", "acme.*", OWN)
    assert (override["action"], override["name"], override["revision"]) == ("override changed", "acme.A", 7)
    caplog.clear()
    log_change(Change(8, 0, keys=("answering",)))
    assert "implied capabilities changed" in caplog.text


def test_a_large_commit_has_few_lines(seeded_registry: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dspy_registry")
    with RegistryWriter(seeded_registry) as writer, Registry(seeded_registry) as registry:
        before = registry.revision
        writer.register_modules([ModuleInfo(f"acme.M{number}") for number in range(500)])
        (change,) = registry.watch(before, timeout=0)
    log_change(change)
    assert len(caplog.records) == LINES_OF_A_CHANGE + 1
    last = json.loads(JsonFormatter().format(caplog.records[-1]))
    assert last["further_changes"] == 500 - LINES_OF_A_CHANGE


# Tables


LONG = [f"acme.search.pipelines.enterprise.Component{number:02}WithAVeryLongDescriptiveName" for number in range(37)]


def columns(*cells: str) -> list[Column]:
    headings = ("name", "category", "capabilities", "pool", "ms")
    rows = [(name, *cells) for name in LONG]
    return [Column(h, [Cell(text) for text in column]) for h, *column in zip(headings, *rows, strict=True)]


def test_a_table_of_long_names_reads_well_in_80_columns() -> None:
    table = columns("reasoning", "complex_reasoning, code_generation, tool_use, iterative", "general", "10000")
    lines = list(drawn(table, 80))
    plain = list(map(click.unstyle, lines))
    assert all(len(line) <= 80 for line in plain)
    assert all(any(name == line for line in plain) for name in LONG)
    assert len(lines) <= 3 * len(LONG) + 3


def test_cells_that_fit_nowhere_get_a_line_each() -> None:
    table = columns("a" * 70, "b c d", "e" * 70, "7")
    lines = list(drawn(table, 60))
    assert sum("capabilities b c d" in line for line in lines) == len(LONG)
    assert any(LONG[0][:60] in line for line in lines)


def test_a_table_that_fits_is_one_line_a_row() -> None:
    table = columns("reasoning", "tool_use", "general", "10000")
    assert len(list(drawn(table, 200))) == len(LONG) + 2
