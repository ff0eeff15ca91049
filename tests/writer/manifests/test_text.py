"""Reading a manifest's text: the same data from each format, the line of each part, and nothing that does harm."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.writer.manifests.lines import Path, shown_path
from dspy_registry.writer.manifests.text import MAX_DEPTH, TextProblem, read_text
from dspy_registry.writer.manifests.yaml import MAX_NODES

TOML = '''# a comment with [brackets] and "quotes"
modules = [ {name = "x", requirements = { memory = "low" } },
  { name = "y" } ]

[metadata."dotted.key"]
when = 2024-01-01 10:00:00
"quo\\"ted" = """
 [not.a.table]
 key = 1
"""
deep.er.list = [1,
  "]", # not the end ]
  [3, 4],
]
literal = \'\'\'it's\'\'\'

[[defaults]]
match = 'a'
[defaults.requirements]
memory = "low"
[[defaults]]
match = "b"
[[defaults.inner]]
x = 1
'''

JSON = """{"modules": [
 {"name": "x", "examples": ["a",
   "b:{[,"]}, {
   "name": "y", "metadata": {}, "quo\\"ted": [] }
 ], "nested": [[1],
 [2]]}
"""

YAML = """# first
modules:
- &base
  name: x
  examples:
  - a
  - b
- <<: *base
  name: y
  requirements: {memory: low,
    gpu: true}
"""


@pytest.mark.parametrize(
    ("suffix", "text", "lines"),
    [
        (
            ".toml",
            TOML,
            {
                ("modules",): 2,
                ("modules", 0, "requirements", "memory"): 2,
                ("modules", 1, "name"): 3,
                ("metadata", "dotted.key"): 5,
                ("metadata", "dotted.key", "when"): 6,
                ("metadata", "dotted.key", 'quo"ted'): 7,
                ("metadata", "dotted.key", "deep", "er", "list"): 11,
                ("metadata", "dotted.key", "deep", "er", "list", 1): 12,
                ("metadata", "dotted.key", "deep", "er", "list", 2, 1): 13,
                ("metadata", "dotted.key", "literal"): 15,
                ("defaults", 0): 17,
                ("defaults", 0, "requirements", "memory"): 20,
                ("defaults", 1, "match"): 22,
                ("defaults", 1, "inner", 0, "x"): 24,
            },
        ),
        (
            ".json",
            JSON,
            {
                ("modules",): 1,
                ("modules", 0): 2,
                ("modules", 0, "examples", 1): 3,
                ("modules", 1): 3,
                ("modules", 1, 'quo"ted'): 4,
                ("nested", 1, 0): 6,
            },
        ),
        (
            ".yaml",
            YAML,
            {
                ("modules",): 2,
                ("modules", 0, "examples", 1): 7,
                ("modules", 1): 8,
                ("modules", 1, "name"): 9,
                ("modules", 1, "examples", 0): 6,  # where it is written
                ("modules", 1, "requirements", "gpu"): 11,
            },
        ),
    ],
)
def test_each_part_has_its_line(suffix: str, text: str, lines: dict[Path, int]) -> None:
    document = read_text(text, suffix)
    assert {path: document.line_of(path) for path in lines} == lines


def test_a_part_without_a_line_has_that_of_what_it_is_in() -> None:
    document = read_text("a:\n  b: 1\n", ".yaml")
    assert document.line_of(("a", "missing", 7)) == 1
    assert document.line_of(("missing",)) == document.line_of(()) == 0


@pytest.mark.parametrize(
    "text",
    ["modules = [{name = 'a.B', metadata = {x = 1.5, y = [true, 'z']}}]", YAML, JSON, "{}"],
)
def test_the_same_data_in_each_format(text: str) -> None:
    suffix = {"m": ".toml", "#": ".yaml", "{": ".json"}[text[0]]
    data = read_text(text, suffix).data
    assert read_text(json.dumps(data), ".json").data == data
    assert read_text(json.dumps(data), ".yaml").data == data


plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


def parts(data: Any, path: Path = ()) -> list[Path]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *(found for key, value in inner for found in parts(value, (*path, key)))]


@given(plain)
def test_every_part_of_any_json_has_the_line_it_stands_in(data: Any) -> None:
    text = json.dumps({"top": data}, indent=1)
    document = read_text(text, ".json")
    assert document.data == {"top": data}
    lines = text.splitlines()
    for path in parts({"top": data})[1:]:
        line = lines[document.line_of(path) - 1]
        assert json.dumps(path[-1]) in line if isinstance(path[-1], str) else line.strip()
    # Keys stand in the order of their lines, as they were written.
    found = [document.line_of(path) for path in parts({"top": data})[1:]]
    assert found == sorted(found)


@given(plain)
def test_json_indented_as_yaml_likes_it_is_read_as_yaml_too(data: Any) -> None:
    """Escapes are YAML's own, and `<<` is a merge there."""
    text = json.dumps({"top": data}, indent=1)
    if "<<" not in text and "\\ud" not in text:
        assert read_text(text, ".yaml").data == {"top": data}


# YAML


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("1.5e3", 1500.0),
        (".inf", float("inf")),
        ("~", None),
        ("", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("=", "="),
    ],
)
def test_yaml_is_read_by_the_core_schema(scalar: str, value: object) -> None:
    read = read_text(f"key: {scalar}", ".yaml").data["key"]
    assert (read, type(read)) == (value, type(value))


def test_yaml_merges_and_own_keys_win() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {x: 3, <<: [*a, *b]}\n"
    assert read_text(text, ".yml").data["c"] == {"x": 3, "y": 1, "z": 2}


def test_yaml_of_comments_alone_is_an_empty_manifest() -> None:
    assert read_text("# nothing\n", ".yaml").data == {}


# What is refused, with its line


@pytest.mark.parametrize(
    ("suffix", "text", "line"),
    [
        (".toml", "a = 1\nb = \n", 2),
        (".toml", "a = 1\na = 2\n", 2),
        (".toml", "a = 1\nb = [1,\n", 3),
        (".toml", "a = " + "9" * 5000, 1),
        (".toml", "a = " + "[" * 5000, 1),
        (".json", "", 1),
        (".json", '{"a": 1,\n "b": {"x": 1,\n "x": 2}}', 3),
        (".json", '{"a": 1,\n"b": 2,}', 2),
        (".json", '{"a": 1,\n"b": NaN}', 2),
        (".json", "[" * 100_000, 1),
        (".json", "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), 1),
        (".yaml", "a: 1\nb: 2\na: 3\n", 3),
        (".yaml", "a: [1\nb: 2\n", 2),
        (".yaml", "a: 1\n---\nb: 1\n", 2),
        (".yaml", "a: 1\nb: *nowhere\n", 2),
        (".yaml", "a: 1\nb: !!python/object/apply:os.system [ls]\n", 2),
        (".yaml", "a: !!binary aGVsbG8=\n", 1),
        (".yaml", "a: !!int x\n", 1),
        (".yaml", "a: !!bool 1\n", 1),
        (".yaml", "<<: 5\n", 1),
        (".yaml", "? [a]\n: b\n", 1),
        (".yaml", "a: 1\n\x00", 2),
        (".yaml", "[" * 100_000, 1),
        (".yaml", "- " * 100_000 + "a", 1),
        (".yaml", "a: &a\n- *a\n", 1),
    ],
)
def test_what_is_wrong_is_told_with_its_line(suffix: str, text: str, line: int) -> None:
    with pytest.raises(TextProblem) as caught:
        read_text(text, suffix)
    assert caught.value.line == line


@pytest.mark.parametrize(
    ("suffix", "text"),
    [
        (".json", '{"a": 1,\n "a": 2,\n "b": {"x": {"y": 1, "y": 2},\n "x": 2}, "a": 3}'),
        (".yaml", "a: 1\na: 2\nb:\n  x: {}\n  x: {y: 1, y: 2}\na: 3\n"),
    ],
)
def test_all_keys_that_appear_twice_are_told(suffix: str, text: str) -> None:
    with pytest.raises(TextProblem) as caught:
        read_text(text, suffix)
    told = [(problem.line, problem.message) for problem in (caught.value, *caught.value.further)]
    expected = (
        [(2, "a", 1), (4, "b.x", 3), (4, "a", 1)] if suffix == ".json" else [(2, "a", 1), (5, "x", 4), (6, "a", 1)]
    )
    for (line, message), (again, key, first) in zip(told, expected, strict=True):
        assert line == again
        assert key in message
        assert message.endswith(str(first))


def test_aliases_multiply_up_to_a_bound() -> None:
    bomb = "a0: &a0 [x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n" for level in range(1, 12)
    )
    with pytest.raises(TextProblem, match=str(MAX_NODES)):
        read_text(bomb, ".yaml")


@given(st.text(), st.sampled_from([".toml", ".yaml", ".json"]))
def test_any_text_is_read_or_refused(text: str, suffix: str) -> None:
    try:
        line = read_text(text, suffix).line_of(("no such key",))
    except TextProblem as problem:
        line = problem.line
    assert 0 <= line <= len(text.splitlines()) + 1


def test_a_path_is_shown_as_people_write_it() -> None:
    assert shown_path(("modules", 0, "requirements", "memory")) == "modules[0].requirements.memory"
    assert shown_path(("aliases", "\ud800")) == "aliases.\\ud800"
