"""Manifests are parsed in a process that can be ended, and whatever a text does to it stays that file's error."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dspy_registry.writer.manifests import parser as manifest_parser
from dspy_registry.writer.manifests.declarations import ERRORS_SHOWN, ERRORS_SOUGHT
from dspy_registry.writer.manifests.folder import ManifestFolder
from dspy_registry.writer.manifests.parse import load
from dspy_registry.writer.manifests.parser import Parser, ParserClosedError

SOUND = b'[[modules]]\nname = "acme.A"\nmetadata = {x = [1, 2.5, "three"]}\n[aliases]\na = "acme.A"\n'
ENDLESS = b'{"modules": [' + b",".join(b"[7]" for _ in range(400_000)) + b"]}"
"""Takes well over a hundredth of a second."""


@pytest.fixture
def parser() -> Iterator[Parser]:
    with closing(Parser()) as made:
        yield made


def pid_of(parser: Parser) -> int:
    return parser._workers[0].process.pid


def test_it_answers_as_the_parser_in_this_process(parser: Parser) -> None:
    for content, suffix in ((SOUND, ".toml"), (b"modules: 7\n", ".yaml"), (b"\xff", ".json"), (b"", ".toml")):
        expected, found = load("f" + suffix, content, suffix), parser.load("f" + suffix, content, suffix)
        assert (found.declared, found.errors, found.places) == (expected.declared, expected.errors, expected.places)


def test_lines_of_what_is_declared_are_told_later(parser: Parser) -> None:
    loaded = parser.load("f.toml", SOUND, ".toml")
    paths = [("modules", 0), ("modules", 0, "name"), ("aliases", "a"), ("aliases",), ("nothing",)]
    assert [loaded.line_of(path) for path in paths] == [1, 2, 5, 4, 0]


def test_one_process_answers_all(parser: Parser) -> None:
    parser.load("f.toml", SOUND, ".toml")
    first = pid_of(parser)
    parser.load("g.toml", SOUND, ".toml")
    assert pid_of(parser) == first


def test_a_text_that_takes_too_long_is_an_error_and_the_next_file_is_read() -> None:
    with closing(Parser(cpu_seconds=0.01)) as parser:
        (error,) = parser.load("f.json", ENDLESS, ".json").errors
        assert (error.file, "0.01 s" in error.message) == ("f.json", True)
    with closing(Parser()) as parser:
        assert parser.load("f.toml", SOUND, ".toml").declared is not None


def test_a_process_that_is_killed_is_replaced(parser: Parser) -> None:
    parser.load("f.toml", SOUND, ".toml")
    first = pid_of(parser)
    os.kill(first, signal.SIGKILL)
    assert parser.load("f.toml", SOUND, ".toml").declared is not None
    assert pid_of(parser) != first


def test_a_process_that_is_silent_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_parser, "_SILENCE", 0.05)
    with closing(Parser()) as parser:
        parser.load("f.toml", SOUND, ".toml")  # it may be too late for this one already
        if parser._workers:
            os.kill(pid_of(parser), signal.SIGSTOP)
            assert parser.load("f.toml", SOUND, ".toml").errors
            assert parser._workers == []


def test_closing_ends_what_is_under_way() -> None:
    parser = Parser()
    raised: list[BaseException] = []

    def ask() -> None:
        try:
            while True:
                parser.load("f.json", ENDLESS, ".json")
        except ParserClosedError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not parser._workers:
        pass
    parser.close()
    thread.join()
    assert len(raised) == 1
    with pytest.raises(ParserClosedError):
        parser.load("f.toml", SOUND, ".toml")


def test_a_process_that_cannot_start_is_an_error_of_the_file_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.toml").write_bytes(SOUND)
    with closing(ManifestFolder(tmp_path)) as folder:
        with monkeypatch.context() as patched:
            patched.setattr("sys.executable", str(tmp_path / "nothing"))
            assert len(folder.read().tree.files["a.toml"].errors) == 1
        assert folder.read().tree.files["a.toml"].errors == ()


def test_a_result_is_kept_with_the_content(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(SOUND)
    with closing(ManifestFolder(tmp_path)) as folder:
        first = folder.read().tree.files["a.toml"]
        (tmp_path / "a.toml").touch()
        assert folder.read().tree.files["a.toml"] is first


# Texts that parsers are slow with


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".toml", "a." * 50_000 + "a = 1\n"),
        (".toml", "[" + '"a" . ' * 50_000 + "a]\n"),
        (".yaml", "m: {<<: [" + ",".join(f"{{k{number}: 1}}" for number in range(20_000)) + "]}\n"),
        (".yaml", "m:\n" + "".join(f"  <<: {{k{number}: 1}}\n" for number in range(20_000))),
        (".yaml", "[" + "a," * 800_000 + "]"),
    ],
    ids=["dotted keys", "dotted table", "merged list", "merges", "long list"],
)
def test_texts_that_took_minutes_are_answered(parser: Parser, suffix: str, text: str) -> None:
    """Within the limit of one file: a longer time would be the error that the test refuses."""
    (error,) = parser.load(f"f{suffix}", text.encode(), suffix).errors
    assert (error.line, "computing" in error.message) == (1, False)


def test_dots_that_are_no_key_are_no_parts(parser: Parser) -> None:
    dots = ".x" * 100
    text = f'# {dots}\n[[modules]]\nname = "a"\nexamples = ["{dots}", \'{dots}\', """\n{dots}"""]\n'
    floats = ", ".join(["1.5"] * 100)
    found = parser.load(
        "f.toml", f"{text}metadata = {{x = [{floats}], y = [{floats.replace(',', ' ,')}]}}\n".encode(), ".toml"
    )
    assert found.errors == ()


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.full)])
@pytest.mark.parametrize(
    ("suffix", "head", "each", "tail"),
    [
        (".json", '{"modules": [', "7,", "7]}"),
        (".json", "{", '"k%d": 1,', '"k": 1}'),
        (".toml", "", "k%d = 1\n", ""),
    ],
)
def test_of_very_many_errors_a_few_are_looked_for(suffix: str, head: str, each: str, tail: str, count: int) -> None:
    text = head + "".join(each.replace("%d", str(number)) for number in range(count)) + tail
    errors = load(f"f{suffix}", text.encode(), suffix).errors
    assert len(errors) == ERRORS_SHOWN + 1
    assert errors[-1].message == f"and at least {ERRORS_SOUGHT - ERRORS_SHOWN} more errors"
    assert all(error.line for error in errors[:-1])


@pytest.mark.parametrize(
    ("suffix", "text", "line"),
    [
        (".toml", "[a.b.c]\nx = 1\n", 1),
        (".toml", "\na.b = 1\n", 2),
        (".json", "[]", 1),
        (".toml", "\n[[modules]]\nname = 'a'\n[modules.metadata" + ".x" * 60 + "]\ny = [[[[[[1]]]]]]\n", 5),
        (".json", '{"modules": [{"name": "a",\n"estimated_duration": ' + "1" * 2000 + "}]}", 2),
        (".yaml", "modules:\n- name: a\n  estimated_duration: " + "1" * 5000, 3),
        (".yaml", "modules:\n- name: a\n  metadata: {x: .nan}", 3),
        (".toml", "[[modules]]\nname = 'a'\n\nestimated_duration = " + "1" * 5000 + "\n", 4),
        (".toml", "[[modules]]\n\nname = '\0'\n", 3),
        (".json", '{"modules": [\n{"name": "\\u0000"}]}', 2),
    ],
)
def test_every_error_has_a_line(suffix: str, text: str, line: int) -> None:
    errors = load(f"f{suffix}", text.encode(), suffix).errors
    assert [error.line for error in errors][:1] == [line]
