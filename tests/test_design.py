"""Every numbered invariant of docs/design.md has a test named after it, and the reverse."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support import ROOT

DESIGN = ROOT / "docs" / "design.md"
INVARIANT = re.compile(r"^(?:#{2,6}\s+|(?:[-*]\s+)?\*\*)I(\d+)\b", re.MULTILINE)
NAMED = re.compile(r"test_i(\d+)_")
NOT_RUN = re.compile(r"pytest\.mark\.(stress|full|skip|skipif|xfail)\b")


def invariants(text: str) -> list[int]:
    return [int(number) for number in INVARIANT.findall(text)]


def set_aside(marks: list[ast.expr]) -> bool:
    """Whether `make test` leaves such a test out, or accepts its failure; marks of single parameters do neither."""
    each = [one for mark in marks for one in (mark.elts if isinstance(mark, ast.List) else [mark])]
    return any(NOT_RUN.match(ast.unparse(mark)) for mark in each)


def named_tests(node: ast.Module | ast.ClassDef) -> set[int]:
    """The invariants that the tests under `node` which `make test` runs are named after."""
    found: set[int] = set()
    for child in node.body:
        match child:
            case ast.Assign(targets=[ast.Name(id="pytestmark")], value=marks):
                if set_aside([marks]):
                    return set()
            case ast.ClassDef(decorator_list=marks) if not set_aside(marks):
                found |= named_tests(child)
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                named = NAMED.match(name)
                if named and not set_aside(child.decorator_list):
                    found.add(int(named[1]))
    return found


def invariants_tested(folder: Path) -> set[int]:
    return {
        number
        for path in folder.rglob("test_*.py")
        for number in named_tests(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    }


def test_invariants_are_numbered_once_from_one() -> None:
    numbers = invariants(DESIGN.read_text(encoding="utf-8"))
    assert numbers == list(range(1, len(numbers) + 1))
    assert numbers


def test_every_invariant_has_a_test_and_every_such_test_an_invariant() -> None:
    numbers = set(invariants(DESIGN.read_text(encoding="utf-8")))
    found = invariants_tested(ROOT / "tests")
    assert (sorted(numbers - found), sorted(found - numbers)) == ([], [])


@pytest.mark.parametrize("line", ["**I3 - text**", "- **I3** text", "### I3 Snapshots", "## I3: x"])
def test_an_invariant_is_recognised(line: str) -> None:
    assert invariants(f"before\n{line}\nafter") == [3]


@pytest.mark.parametrize("line", ["see I3", "**Is3**", "`I3`", "**I3x**"])
def test_a_mention_is_no_invariant(line: str) -> None:
    assert invariants(line) == []


@pytest.mark.parametrize(
    ("code", "numbers"),
    [
        ("def test_i3_x(): pass", {3}),
        ("async def test_i12_x(): pass", {12}),
        ("class TestAll:\n    def test_i4_x(self): pass", {4}),
        ("@pytest.mark.parametrize('n', [1])\ndef test_i3_x(n): pass", {3}),
        ("def test_i3(): pass\ndef check_i4_x(): pass", set()),
        ("@pytest.mark.stress\ndef test_i3_x(): pass", set()),
        ("@pytest.mark.full\ndef test_i3_x(): pass", set()),
        ("@pytest.mark.parametrize('n', [1, pytest.param(2, marks=pytest.mark.full)])\ndef test_i3_x(n): pass", {3}),
        ("@pytest.mark.skipif(True, reason='')\ndef test_i3_x(): pass", set()),
        ("@pytest.mark.xfail\nclass TestAll:\n    def test_i4_x(self): pass", set()),
        ("pytestmark = [pytest.mark.stress]\ndef test_i3_x(): pass", set()),
    ],
)
def test_a_test_counts_when_make_test_runs_it(tmp_path: Path, code: str, numbers: set[int]) -> None:
    (tmp_path / "test_crafted.py").write_text(code)
    assert invariants_tested(tmp_path) == numbers
