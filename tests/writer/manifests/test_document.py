"""What one manifest may say: everything wrong with it is told at once, and the schema agrees."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.writer.manifests.declarations import ERRORS_SHOWN, LoadedFile
from dspy_registry.writer.manifests.folder_watch import plain_error
from dspy_registry.writer.manifests.parse import MAX_FILE_BYTES, load
from dspy_registry.writer.manifests.schema import SCHEMA_FILE, manifest_schema, schema_text
from dspy_registry.writer.manifests.text import Document, read_text
from dspy_registry.writer.manifests.validate import validate_document

EVERYTHING = """
"$schema" = "manifest.schema.json"

[[modules]]
name = "acme.Summarise"
category = "prediction"
capabilities = ["summarisation", "tool_use"]
requirements = {memory = "medium", compute = "very_high", gpu = true, vram_gb = 8}
pool_type = "neural"
estimated_duration = 0
native_available = true
examples = ["Summarise()(text)"]
metadata = {owner = "team", nested = {limits = [1, 2.5, true]}}

[[modules]]
name = "acme.Bare"

[aliases]
summary = "acme.Summarise"

[implications]
summarisation = ["reading"]

[[defaults]]
match = "dspy.Bootstrap*"
pool_type = "optimizer"
estimated_duration = 60000
"""

WRONG = """colour: 1
modules:
- nam: x
- name: a
  capabilites: [x]
  capabilities: [X, 5]
  requirements: {memory: lots, gpu: yes, foo: {1: 2}}
  estimated_duration: -1
  metadata: [1]
- name: a
  requirements: 5
- 7
aliases: {"": b, c: 5, 1: x}
implications: {Q: [x], x: y, z: [3]}
defaults:
- pool_type: x
- {match: "*", name: no}
"""


PIECES = [
    b'"\\ud800"',
    b"'\\ud800'",
    b"\xed\xa0\x80",
    b"[[",
    b"{",
    b"*a",
    b"&a ",
    b"<<: ",
    b"\n",
    b"\xe2\x80\xa8",
    b"- ",
    b"'''",
]


def check(text: str, suffix: str = ".yaml") -> LoadedFile:
    return validate_document(f"file{suffix}", read_text(text, suffix))


def test_everything_that_a_manifest_can_say() -> None:
    loaded = check(EVERYTHING, ".toml")
    assert loaded.errors == ()
    assert loaded.declared is not None
    assert list(loaded.declared.modules) == ["acme.Summarise", "acme.Bare"]
    assert loaded.declared.modules["acme.Bare"] == {}
    assert loaded.declared.modules["acme.Summarise"]["requirements"]["vram_gb"] == 8
    assert loaded.declared.aliases == {"summary": "acme.Summarise"}
    assert loaded.declared.implications == {"summarisation": ("reading",)}
    (default,) = loaded.declared.defaults
    assert default.match == "dspy.Bootstrap*"
    assert default.fields == {"pool_type": "optimizer", "estimated_duration": 60000}


def test_everything_wrong_is_told_at_once_with_its_place() -> None:
    told = [str(error) for error in check(WRONG).errors]
    assert [tuple(line.split(": ")[:2]) for line in told] == [
        ("file.yaml:1", "colour"),
        ("file.yaml:3", "modules[0].nam"),
        ("file.yaml:3", "modules[0]"),
        ("file.yaml:5", "modules[1].capabilites"),
        ("file.yaml:6", "modules[1].capabilities"),
        ("file.yaml:7", "modules[1].requirements.memory"),
        ("file.yaml:7", "modules[1].requirements.gpu"),
        ("file.yaml:7", "modules[1].requirements.foo"),
        ("file.yaml:8", "modules[1].estimated_duration"),
        ("file.yaml:9", "modules[1].metadata"),
        ("file.yaml:11", "modules[2].requirements"),
        ("file.yaml:10", "modules[2].name"),
        ("file.yaml:12", "modules[3]"),
        ("file.yaml:13", "aliases."),
        ("file.yaml:13", "aliases.c"),
        ("file.yaml:13", "aliases.1"),
        ("file.yaml:14", "implications.Q"),
        ("file.yaml:14", "implications.x"),
        ("file.yaml:14", "implications.z[0]"),
        ("file.yaml:16", "defaults[0]"),
        ("file.yaml:17", "defaults[1].name"),
    ]


def test_implications_beyond_the_limits_are_told_with_their_place() -> None:
    words = ", ".join(f"w{number}: [x]" for number in range(1024))
    told = check(f"implications: {{{words}, much: [{', '.join(['x'] * 65)}]}}").errors
    assert [error.field for error in told] == ["implications", "implications.much"]


@pytest.mark.parametrize("data", [None, [], 5, "modules", True])
def test_a_manifest_is_a_mapping(data: object) -> None:
    (error,) = validate_document("a.json", Document(data, dict)).errors
    assert (error.file, error.line, error.field) == ("a.json", 1, "")


@pytest.mark.parametrize("key", ["modules", "aliases", "implications", "defaults"])
@pytest.mark.parametrize("value", [None, 5, "x"])
def test_each_part_has_its_type(key: str, value: object) -> None:
    (error,) = validate_document("a.json", Document({key: value}, dict)).errors
    assert error.field == key


def test_a_long_list_of_errors_ends_with_their_number() -> None:
    errors = check("modules: [" + "7, " * 250 + "]").errors
    assert len(errors) == ERRORS_SHOWN + 1
    assert "150" in errors[-1].message


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", 0),
        (b" \n\t\n", 0),
        (b"a = 1\nb = '\xff'\n", 2),
        (b"\xff\xfea\x00", 1),
        (b"# " + b"x" * MAX_FILE_BYTES, 0),
        (b"a = \n", 1),
    ],
)
def test_what_is_no_text_of_a_manifest_is_told(content: bytes, line: int) -> None:
    (error,) = load("a.toml", content, ".toml").errors
    assert (error.file, error.line, error.field) == ("a.toml", line, "")


def test_a_byte_order_mark_is_passed_over() -> None:
    assert load("a.toml", b'\xef\xbb\xbf[[modules]]\nname = "a.B"\n', ".toml").errors == ()


@given(
    st.sampled_from(
        [(EVERYTHING, ".toml"), (WRONG, ".yaml"), ('{"modules": [{"name": "a.B", "examples": ["x"]}]}', ".json")]
    ),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=6) | st.sampled_from(PIECES))),
)
def test_any_damage_is_told_or_does_none(sound: tuple[str, str], damage: list[tuple[float, int, bytes]]) -> None:
    content, suffix = sound[0].encode(), sound[1]
    for place, length, piece in damage:
        at = int(place * len(content))
        content = content[:at] + piece + content[at + length :]
    loaded = load(f"file{suffix}", content, suffix)
    assert (loaded.declared is None) is bool(loaded.errors)
    for error in loaded.errors:
        assert 0 <= error.line <= len(content.decode("utf-8", "replace").splitlines()) + 1
        assert json.loads(msgspec.json.encode(plain_error(error)))["message"]


# The schema


def test_the_shipped_schema_is_the_generated_one() -> None:
    """`dspy-registry schema > writer/manifests/manifest.schema.json` makes it so."""
    shipped = (resources.files("dspy_registry.writer.manifests") / SCHEMA_FILE).read_text(encoding="utf-8")
    assert json.loads(shipped) == manifest_schema() == json.loads(schema_text())


def test_the_schema_is_a_sound_one() -> None:
    jsonschema.Draft202012Validator.check_schema(manifest_schema())


names = st.sampled_from(["acme.A", "acme.B", "", "x" * 255, "x" * 256, 5, None])
levels = st.sampled_from(["low", "very_high", "lots", None, 1])
capabilities = st.lists(st.sampled_from(["reasoning", "a1_", "A", "", 5, "x" * 64, "x" * 65]), max_size=3)
fields = {
    "category": st.sampled_from(["retrieval", "", 5, "x" * 65]),
    "capabilities": capabilities | st.sampled_from(["reasoning", None]) | st.just(["a"] * 65),
    "requirements": st.fixed_dictionaries(
        {}, optional={"memory": levels, "compute": levels, "gpu": st.sampled_from([True, "yes"]), "disk": st.just(1)}
    ),
    "pool_type": st.sampled_from(["general", 1.5]),
    "estimated_duration": st.sampled_from([0, 5, -1, 2_592_000_000, 2_592_000_001, "5", True]),
    "native_available": st.sampled_from([True, False, 0, "no"]),
    "examples": st.lists(st.sampled_from(["a", 5]), max_size=2),
    "metadata": st.sampled_from([{}, {"a": [1]}, [], None]),
    "colour": st.just("red"),
}
documents = st.fixed_dictionaries(
    {},
    optional={
        "$schema": st.sampled_from(["x", 5]),
        "modules": st.lists(
            st.fixed_dictionaries({"name": names}, optional=fields) | st.just({}),
            max_size=3,
            unique_by=lambda entry: entry.get("name"),
        ),
        "aliases": st.dictionaries(st.sampled_from(["a", "", "x" * 256]), names, max_size=2),
        "implications": st.dictionaries(
            st.sampled_from(["a", "B"]), capabilities | st.sampled_from([["x"] * 64, ["x"] * 65]), max_size=2
        )
        | st.sampled_from([{f"w{i}": ["x"] for i in range(n)} for n in (1024, 1025)]),
        "defaults": st.lists(st.fixed_dictionaries({"match": names}, optional=fields), max_size=2),
        "other": st.just(1),
    },
)


@given(documents)
def test_the_schema_accepts_exactly_what_the_daemon_does(data: dict[str, Any]) -> None:
    loaded = validate_document("a.json", Document(data, dict))
    assert jsonschema.Draft202012Validator(manifest_schema()).is_valid(data) is (loaded.declared is not None)
    assert (loaded.declared is None) is bool(loaded.errors)


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".toml", '[[modules]]\nname = "a"\nmetadata = {x = [nan]}\nrequirements = {gb = inf}\n'),
        (".yaml", "modules:\n- name: a\n  metadata: {x: [.nan]}\n  requirements: {gb: .inf}\n"),
    ],
)
def test_a_number_that_is_not_finite_is_refused_where_it_stands(suffix: str, text: str) -> None:
    errors = load(f"m{suffix}", text.encode(), suffix).errors
    assert {(error.line, error.field) for error in errors} == {
        (3, "modules[0].metadata.x[0]"),
        (4, "modules[0].requirements.gb"),
    }


@pytest.mark.parametrize("key", ["7", "9" * 5000])
def test_a_key_of_digits_is_no_place_in_a_list(key: str) -> None:
    lines = '{"modules": [{"name": "acme.C", "metadata": {', f'"{key}": [1,', '{"y": 1e999}]', "}}]}"
    (error,) = load("m.json", "\n".join(lines).encode(), ".json").errors
    assert (error.line, error.message) == (3, "inf is not a finite number")
