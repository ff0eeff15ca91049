"""What people read is readable in 80 columns, whatever the length of names; what programs read stays as it is."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import click
import msgspec
import pytest

from dspy_registry import LabelUpdate, ModuleInfo, Policy, Registry, RegistryWriter, UsageReporter, WriterClient
from dspy_registry.cli.program import main
from dspy_registry.registry_store.program_document import (
    FieldShape,
    PredictorShape,
    ProgramDocument,
    digest_of,
    encode_document,
)
from dspy_registry.writer.programs import Publication
from tests.support.command import daemon, run

WIDTH = 80


def long(start: str) -> str:
    """A name of 60 characters."""
    return start + "VeryLongNameOfAModuleOfAnEnterpriseWithManyWords0123456789"[: 60 - len(start)]


NAME, OTHER, LABEL = long("acme.search."), long("acme.answers."), long("live_")
CAPABILITIES = (long("first_").lower(), long("second_").lower(), "reasoning")
COMMANDS: dict[str, tuple[str, ...]] = {
    "list": ("list",),
    "find": ("find", "--capability", "reasoning"),
    "get": ("get", NAME, "--explain"),
    "history": ("history", NAME, "--values"),
    "diff": ("diff", NAME, "1", "2"),
    "status": ("status",),
    "stats": ("stats",),
    "stats of a version": ("stats", NAME, "--version", "2"),
    "health": ("health",),
    "limits": ("limits",),
    "policy": ("policy", "list"),
    "label": ("label", "list"),
    "watch": ("watch", "--since", "0", "--timeout", "0"),
    "route": ("route", NAME, OTHER),
    "route --explain": ("route", NAME, OTHER, "--explain"),
    "program show": ("program", "show", f"{OTHER}@{LABEL}"),
    "program diff": ("program", "diff", f"{OTHER}@first", f"{OTHER}@{LABEL}"),
    "rollout status": ("rollout", "status"),
    "alias": ("alias", "list"),
    "check": ("check",),
}


class Terminal(io.TextIOWrapper):
    """A stream that says that it is a terminal."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", newline="")

    def isatty(self) -> bool:
        return True

    def text(self) -> str:
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode()


def on_a_terminal(*arguments: str | Path, columns: int = WIDTH, **environment: str) -> list[str]:
    """The lines that a command prints on a terminal of this width, errors after the rest, in this process."""
    out, err = Terminal(), Terminal()
    there = {"COLUMNS": str(columns), "TERM": "dumb", **environment}
    with mock.patch.dict(os.environ, there), mock.patch.multiple(sys, stdout=out, stderr=err):
        if "NO_COLOR" not in environment:
            os.environ.pop("NO_COLOR", None)
        with pytest.raises(SystemExit):
            main([*map(str, arguments)])
    return (out.text() + re.sub("\x1b\\[[0-9?]*[A-Zhl]|\r", "", err.text())).splitlines()


def readable(lines: list[str]) -> str:
    """The lines as one text, if each is short enough, and no column has a letter a line."""
    plain = list(map(click.unstyle, lines))
    assert [line for line in plain if len(line) > WIDTH] == []
    narrow = [line for line in plain if 0 < len(line.strip()) <= 2 and line.strip().isalpha()]
    assert len(narrow) <= len(plain) / 10
    return "\n".join(plain)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A registry with long names in every table, and its daemon."""
    folder = tmp_path_factory.mktemp("narrow") / ("r" * 30)
    with RegistryWriter(folder) as writer:
        fill(writer)
    with daemon(folder), WriterClient(folder) as client, ExitStack() as stack:
        with UsageReporter(folder) as reporter:
            for number in range(30):
                reporter.record(NAME, 1234.5, ok=number % 3 > 0, error=None if number % 3 else "rate_limit", version=2)
            reporter.record(OTHER, 5.0)
            assert reporter.flush(30)
        client.open_circuit(NAME, 3600.0)
        client.start_rollout(NAME, 2, label=LABEL)
        with Registry(folder) as registry:
            stack.enter_context(registry.limit(OTHER))
            yield folder


def fill(writer: RegistryWriter) -> None:
    writer.register_module(ModuleInfo(OTHER, capabilities=CAPABILITIES, category=long("category_")))
    for words in ("first", "second"):
        examples = (f"the {words} of many examples, which is a sentence of some length, to be read in lines",)
        info = ModuleInfo(NAME, pool_type=long("pool_"), capabilities=CAPABILITIES, examples=examples)
        writer.register_module(info)
    writer.set_alias(long("alias"), NAME)
    documents = program_of("one"), program_of("two")
    for document, label in zip(documents, ("first", LABEL), strict=True):
        writer.publish_program(Publication(OTHER, digest_of(document), label=label), document)
    writer.set_labels((LabelUpdate(NAME, LABEL, 1), LabelUpdate(NAME, long("other_"), {1: 90, 2: 10})))
    writer.set_policy(OTHER, Policy(max_concurrency=3, max_timeout=20.0, window_calls=50, minimum_failures=5))
    writer.set_policy(f"pool:{long('pool_')}", Policy(max_concurrency=3))


def program_of(mark: str) -> bytes:
    """A program with one predictor of a long name, and long lines in its state."""
    said = f"Answer the {mark} question in a sentence that is longer than a line of a narrow terminal has room for."
    demo = {LABEL: f"{mark} demonstration with a value of many words, which a line of 80 columns does not hold"}
    state = {NAME: {"signature": {"instructions": said}, "demos": [demo]}}
    fields = (FieldShape(LABEL, "input", "str"), FieldShape(long("answer_"), "output", f"list[{long('Type')}]"))
    path = f"{long('acme.')}:Qa"
    return encode_document(
        ProgramDocument(
            class_path=path,
            origin=path,
            dspy_version="3.4.1",
            predictors=(PredictorShape(NAME, "dspy.Predict", fields),),
            state=msgspec.Raw(msgspec.json.encode(state)),
        )
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_it_is_readable_in_80_columns(folder: Path, name: str) -> None:
    text = readable(on_a_terminal(*COMMANDS[name], "--path", folder))
    if name not in ("status", "check", "diff"):
        assert any(name in text for name in (NAME, OTHER, LABEL))  # whole, on one line


@pytest.mark.parametrize("name", COMMANDS)
def test_off_a_terminal_the_width_does_not_matter(folder: Path, name: str) -> None:
    """So an environment that has a width, as that of a test's worker may, changes nothing."""
    if name in ("limits", "status", "rollout status", "stats"):  # they tell the time
        return
    narrow, wide, unset = (
        run(*COMMANDS[name], "--path", folder, **width) for width in ({"COLUMNS": "40"}, {"COLUMNS": "400"}, {})
    )
    assert narrow.stdout == wide.stdout == unset.stdout
    assert narrow.stderr == wide.stderr == unset.stderr
    assert "\x1b" not in narrow.stdout + narrow.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_the_same_on_any_terminal(folder: Path, name: str) -> None:
    command = (*COMMANDS[name], "--json", "--path", folder)
    lines = on_a_terminal(*command)
    if name == "watch":
        assert [json.loads(line)["revision"] for line in lines]
    else:
        assert json.loads("\n".join(lines)).keys() == json.loads(run(*command).stdout).keys()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("watch", "program show", "check")])
def test_a_wide_terminal_has_a_line_for_each_row(folder: Path, name: str) -> None:
    """Nothing is wrapped where it fits."""
    wide = list(map(click.unstyle, on_a_terminal(*COMMANDS[name], "--path", folder, columns=1000)))
    assert len(wide) <= len(on_a_terminal(*COMMANDS[name], "--path", folder))
    for line in wide:
        assert line == line.rstrip()


def test_manifests_errors_are_readable(tmp_path: Path) -> None:
    file = tmp_path / f"{long('manifest_')}.toml"
    file.write_text(f'[[modules]]\nname = "{NAME}"\nestimated_duration = "soon"\ncapabilities = 5\n', encoding="utf-8")
    text = readable(on_a_terminal("manifests", "check", tmp_path))
    assert file.name in text
    assert "1 file" in text


def test_violations_are_readable(tmp_path: Path) -> None:
    folder = tmp_path / long("registry_")
    with RegistryWriter(folder) as writer:
        fill(writer)
    (folder / "revision").unlink()
    readable(on_a_terminal("check", "--path", folder))


# Colours


def test_what_is_wrong_has_colour_and_no_color_is_plain(folder: Path) -> None:
    for name, colour in (("stats", "31"), ("health", "31"), ("rollout status", "3"), ("list", "36")):
        assert f"\x1b[{colour}" in "\n".join(on_a_terminal(*COMMANDS[name], "--path", folder, columns=400))
    for command in COMMANDS.values():
        assert "\x1b" not in "\n".join(on_a_terminal(*command, "--path", folder, NO_COLOR="1")), command


def test_an_override_has_colour(seeded_registry: Path, tmp_path: Path) -> None:
    from dspy_registry.registry_store.layers import Layer

    with RegistryWriter(seeded_registry) as writer:
        writer.store.committer.commit(lambda draft: draft.declare(NAME, Layer("manifest:a.toml", {"category": "x"})))
        writer.register_module(ModuleInfo(NAME))
    coloured = "\x1b[33mclient over manifest:a.toml"
    assert coloured in "\n".join(on_a_terminal("get", NAME))
    assert coloured in "\n".join(on_a_terminal("list", columns=400))
    assert "client over manifest:a.toml" in run("get", NAME).stdout


def test_a_failure_has_colour(seeded_registry: Path) -> None:
    assert "\x1b[31m\x1b[1merror:" in "\n".join(_with_styles("get", "nothing"))
    assert "\x1b[31m" in "\n".join(on_a_terminal("status"))  # no daemon answers


def _with_styles(*arguments: str) -> list[str]:
    err = Terminal()
    with mock.patch.multiple(sys, stdout=Terminal(), stderr=err), pytest.raises(SystemExit):
        main([*arguments])
    return err.text().splitlines()


def test_a_value_of_many_blanks_can_be_shown(tmp_path: Path) -> None:
    with RegistryWriter(tmp_path / "registry") as writer:
        writer.register_module(ModuleInfo("acme.Blank", examples=(" " * 200,)))
    assert "examples" in readable(on_a_terminal("get", "acme.Blank", "--path", tmp_path / "registry"))
