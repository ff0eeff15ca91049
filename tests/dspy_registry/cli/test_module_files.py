"""A file for `register` is read by the rules of manifests, and nothing of it is dropped silently."""

from __future__ import annotations

import json
import re

import pytest

from dspy_registry import InvalidModuleError
from dspy_registry.cli.module_files import read_modules
from dspy_registry.registry_store.records import to_plain
from dspy_registry.writer.manifests.parse import load
from tests.support.command import refusal

WRONG = """modules:
- name: no
  category: yes
  capabilities: [Loud]
  estimated_duration: soon
- nam: acme.B
  metadata: [1]
- 7
"""


def problems_of(name: str, text: str) -> tuple[str, ...]:
    with pytest.raises(InvalidModuleError) as caught:
        read_modules(name, text.encode())
    return caught.value.problems


def test_yaml_means_what_it_means_in_a_manifest() -> None:
    text = "name: no\ncategory: on\nestimated_duration: 010\nmetadata: {a: yes, b: 1:30, c: 2024-01-01}\n"
    (info,) = read_modules("m.yaml", text.encode())
    indented = text.replace("\n", "\n  ").rstrip()
    declared = load("m.yaml", f"modules:\n- {indented}\n".encode(), ".yaml").declared
    assert declared is not None
    assert {"no": {key: to_plain(info)[key] for key in ("category", "estimated_duration", "metadata")}} == (
        declared.modules
    )
    assert (info.name, info.category) == ("no", "on")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.yaml", "name: a\ncategory: x\ncategory: y\nname: b\n", ["line 3: ", "line 4: "]),
        ("m.json", '{"name": "a",\n "name": "b",\n"x": 1, "x": 2}', ["line 2: ", "line 3: "]),
        ("m.jsonl", '{"name": "a"}\n{"name": "b", "name": "c"}', ["line 2: "]),
        ("m.toml", 'name = "a"\nname = "b"\n', ["line 2: "]),
    ],
)
def test_a_key_that_stands_twice_is_an_error(name: str, text: str, said: list[str]) -> None:
    problems = problems_of(name, text)
    assert len(problems) == len(said)
    assert all(part in problem for part, problem in zip(said, problems, strict=True))


def test_every_wrong_field_of_every_module_is_named_at_once_as_for_a_manifest() -> None:
    told = problems_of("m.yaml", WRONG)
    errors = load("m.yaml", WRONG.encode(), ".yaml").errors
    assert len(told) == len(errors) == 6
    for error in errors:
        assert any(f"line {error.line}: {error.field}" in problem and error.message in problem for problem in told)


@pytest.mark.parametrize("section", ["aliases", "implications", "defaults"])
@pytest.mark.parametrize("modules", ["", "modules: [{name: acme.A}]\n"])
def test_what_register_cannot_take_is_an_error_that_says_what_to_do(section: str, modules: str) -> None:
    content = "[{match: x}]" if section == "defaults" else "{xx: acme.A}"
    (problem,) = problems_of("m.yaml", f"{modules}{section}: {content}\n")
    assert problem.startswith(f"line {2 if modules else 1}: {section}: ")


def test_an_unknown_key_beside_the_modules_is_an_error() -> None:
    (problem,) = problems_of("m.toml", 'module = 1\n[[modules]]\nname = "acme.A"\n')
    assert problem.startswith("line 1: module: ")


def test_what_list_and_discover_print_beside_the_modules_is_no_error() -> None:
    beside = {"revision": 4, "failures": [], "python": "python3", "dspy_version": None, "$schema": "x"}
    assert len(read_modules("m.json", json.dumps({**beside, "modules": [{"name": "a"}]}).encode())) == 1


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m.yaml", "- name: a\n- name: b\n- name: a\n", r"'a' .*\[0\] .*line 1 .*\[2\] .*line 3"),
        ("m.yaml", "name: a\n---\nname: a\n", "'a' .*line 1 .*line 3"),
        ("m.jsonl", '{"name": "a"}\n\n{"name": "a"}\n', "'a' .*line 1 .*line 3"),
    ],
)
def test_two_entries_of_one_name_are_an_error_that_names_both_places(name: str, text: str, said: str) -> None:
    (problem,) = problems_of(name, text)
    assert re.fullmatch(said, problem)


def test_metadata_from_an_option_is_read_alike() -> None:
    for text in ('{"a": 1, "a": 2}', '{"a": NaN}', "[1]", "{"):
        status, error = refusal("register", "--name", "x", "--metadata", text, "--embedded", "--path", "none")
        assert (status, error["type"]) == (2, "BadParameter")
