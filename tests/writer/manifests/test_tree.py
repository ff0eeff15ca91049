"""Files held against each other: conflicts, cycles, and what counts of a file that is in error."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS, Vocabulary, find_cycle
from dspy_registry.writer.manifests.declarations import (
    ERRORS_SHOWN,
    Declarations,
    LoadedFile,
    ManifestError,
    unreadable,
)
from dspy_registry.writer.manifests.text import read_text
from dspy_registry.writer.manifests.tree import NOTHING, Plan, Tree, compile_tree, is_unknown
from dspy_registry.writer.manifests.validate import validate_document

CORE = (dict(CORE_IMPLICATIONS),)


def declaring(*names: str, aliases: str = "", implications: str = "") -> str:
    modules = "".join(f"- name: {name}\n" for name in names)
    return f"modules:\n{modules or '  []'}\naliases: {{{aliases}}}\nimplications: {{{implications}}}\n"


def loaded(file: str, text: str) -> LoadedFile:
    return validate_document(file, read_text(text, ".yaml")) if text != "broken" else unreadable(file, "broken", 1)


def tree(**texts: str) -> Tree:
    return Tree({f"{file}.yaml": loaded(f"{file}.yaml", text) for file, text in texts.items()})


def in_force(**texts: str) -> dict[str, Declarations]:
    return {file: found.declared or NOTHING for file, found in tree(**texts).files.items()}


def told(plan: Plan) -> list[tuple[str, int, list[str]]]:
    """File and line of each error, and the names of files in its text, in their order."""
    return [(error.file, error.line, re.findall(r"\w+\.yaml", error.message)) for error in plan.errors]


def test_sound_files_come_into_force() -> None:
    plan = compile_tree(tree(a=declaring("x.A"), b=declaring("x.B", aliases="b: x.B")), {}, CORE)
    assert (set(plan.effective), plan.retained, plan.errors) == ({"a.yaml", "b.yaml"}, frozenset(), ())


def test_a_conflict_holds_both_files_and_names_both_in_each() -> None:
    plan = compile_tree(tree(a=declaring("x.A", "x.C"), b=declaring("x.B"), c=declaring("x.C")), {})
    assert set(plan.effective) == {"b.yaml"}
    assert plan.retained == {"a.yaml", "c.yaml"}
    assert told(plan) == [
        ("a.yaml", 3, ["a.yaml", "c.yaml"]),
        ("c.yaml", 2, ["c.yaml", "a.yaml"]),
    ]


def test_an_alias_of_two_files_is_a_conflict() -> None:
    plan = compile_tree(tree(a=declaring("x.A", aliases="s: x.A"), b=declaring("x.B", aliases="s: x.B")), {})
    assert plan.retained == {"a.yaml", "b.yaml"}
    assert [error.field for error in plan.errors] == ["aliases.s", "aliases.s"]


def test_what_a_broken_file_declared_last_counts_against_others() -> None:
    plan = compile_tree(tree(a="broken", b=declaring("x.A")), in_force(a=declaring("x.A")))
    assert plan.retained == {"a.yaml", "b.yaml"}
    assert told(plan)[1] == ("b.yaml", 2, ["b.yaml", "a.yaml"])


def test_a_conflict_spreads_to_whom_the_held_file_would_have_made_room_for() -> None:
    """a gives x.A up to b, but is held for another reason: so b cannot have it yet."""
    plan = compile_tree(
        tree(a=declaring("x.C"), b=declaring("x.A"), c=declaring("x.C"), d=declaring("x.D")),
        in_force(a=declaring("x.A")),
    )
    assert plan.retained == {"a.yaml", "b.yaml", "c.yaml"}
    assert set(plan.effective) == {"d.yaml"}


def test_a_module_may_move_between_files() -> None:
    plan = compile_tree(tree(a=declaring("x.B"), b=declaring("x.A")), in_force(a=declaring("x.A"), b=declaring("x.B")))
    assert plan.errors == ()
    assert set(plan.effective) == {"a.yaml", "b.yaml"}


def test_a_cycle_is_named_in_every_file_that_has_part_in_it() -> None:
    plan = compile_tree(
        tree(
            a=declaring(implications="one: [two]"),
            b=declaring(implications="two: [three], other: [one]"),
            c=declaring(implications="three: [one]"),
            d=declaring(implications="four: [one]"),
        ),
        {},
        CORE,
    )
    assert {error.file for error in plan.errors} == plan.retained == {"a.yaml", "b.yaml", "c.yaml"}
    assert [error.field for error in plan.errors] == ["implications.one", "implications.two", "implications.three"]
    assert all("one -> two -> three -> one" in error.message for error in plan.errors)
    assert set(plan.effective) == {"d.yaml"}


def test_a_cycle_with_what_core_ships_is_one() -> None:
    plan = compile_tree(tree(a=declaring(implications="reasoning: [complex_reasoning]")), {}, CORE)
    assert plan.retained == {"a.yaml"}
    assert "complex_reasoning -> reasoning -> complex_reasoning" in plan.errors[0].message


def test_a_cycle_with_what_a_held_file_declared_last_is_one() -> None:
    plan = compile_tree(
        tree(a="broken", b=declaring(implications="two: [one]")), in_force(a=declaring(implications="one: [two]"))
    )
    assert plan.retained == {"a.yaml", "b.yaml"}


def test_a_word_that_implies_itself_is_a_cycle() -> None:
    assert compile_tree(tree(a=declaring(implications="one: [one]")), {}).retained == {"a.yaml"}


def test_several_cycles_are_all_found() -> None:
    plan = compile_tree(tree(a=declaring(implications="one: [one]"), b=declaring(implications="two: [two]")), {})
    assert plan.retained == {"a.yaml", "b.yaml"}


def test_files_that_cannot_be_looked_for_are_held() -> None:
    standing = in_force(a=declaring("x.A"))
    standing |= {"sub/b.yaml": standing["a.yaml"], "subway.yaml": standing["a.yaml"]}
    plan = compile_tree(Tree({}, ("sub",)), standing)
    assert plan.retained == {"sub/b.yaml"}
    whole = compile_tree(Tree({}, ("",), (ManifestError("", 0, "", "gone"),)), standing)
    assert whole.retained == set(standing)
    assert [str(error) for error in whole.errors] == ["gone"]


@pytest.mark.parametrize(
    ("file", "place", "expected"),
    [("a/b.toml", "a", True), ("a/b.toml", "", True), ("ab.toml", "a", False), ("a", "a", True), ("a", "a/b", False)],
)
def test_unknown_places(file: str, place: str, expected: bool) -> None:
    assert is_unknown(file, (place,)) is expected


def test_a_long_list_of_errors_ends_with_their_number() -> None:
    many = declaring(*(f"x.M{number}" for number in range(150)))
    errors = [error for error in compile_tree(tree(a=many, b=many), {}).errors if error.file == "a.yaml"]
    assert len(errors) == ERRORS_SHOWN + 1
    assert "50" in errors[-1].message


def test_what_the_registry_refuses_is_held() -> None:
    error = ManifestError("a.yaml", 1, "", "refused")
    plan = compile_tree(tree(a=declaring("x.A"), b=declaring("x.A")), {}, (), {"a.yaml": (error,)})
    assert (set(plan.effective), plan.retained, plan.errors) == ({"b.yaml"}, {"a.yaml"}, (error,))


words = st.sampled_from("abcdef")
graphs = st.dictionaries(words, st.lists(words, max_size=3), max_size=6)


@given(graphs)
def test_a_cycle_is_found_exactly_when_there_is_one(graph: dict[str, list[str]]) -> None:
    cycle = find_cycle(graph)
    for word, implied in itertools.pairwise(cycle):
        assert implied in graph[word]
    if cycle:
        assert cycle[0] == cycle[-1]
        assert len(set(cycle)) == len(cycle) - 1
    else:
        Vocabulary(graph)  # which refuses cycles


texts = st.builds(
    lambda names, implications, is_broken: (
        "broken"
        if is_broken
        else declaring(*sorted(names), implications=", ".join(f"{a}: [{b}]" for a, b in sorted(implications.items())))
    ),
    st.sets(st.sampled_from(["x.A", "x.B", "x.C"]), max_size=2),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from("abc"), max_size=1),
    st.booleans(),
)
trees = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), texts, max_size=4)


@given(st.lists(trees, min_size=1, max_size=4))
def test_what_is_in_force_is_always_without_conflict(versions: list[dict[str, str]]) -> None:
    standing: dict[str, Declarations] = {}
    for texts_of_version in versions:
        read = tree(**texts_of_version)
        plan = compile_tree(read, standing, CORE)
        after = {**plan.effective, **{file: standing[file] for file in plan.retained if file in standing}}
        names = [name for declared in after.values() for name in declared.modules]
        assert len(names) == len(set(names))
        words = Vocabulary(CORE_IMPLICATIONS)
        for declared in after.values():
            words = words.merged(declared.implications)  # refuses cycles
        assert plan.retained | set(plan.effective) == set(read.files)
        assert {error.file for error in plan.errors} == plan.retained
        standing = after


@pytest.mark.parametrize("where", ["a", "b"])
def test_an_alias_that_is_a_full_name_is_the_error_of_its_file(where: str) -> None:
    texts = {"a": declaring("x.A"), "b": declaring("x.B")}
    texts[where] = declaring("x.A" if where == "a" else "x.B", aliases="x.A: x.B")
    plan = compile_tree(tree(**texts), {}, CORE)
    assert [(error.file, error.field) for error in plan.errors] == [(f"{where}.yaml", "aliases.x.A")]
