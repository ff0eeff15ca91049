"""Capability implications: closed transitively, cycles refused by name, re-indexed in the same commit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry import ModuleInfo, Registry, RegistryWriter, VocabularyError
from dspy_registry.registry_store import vocabulary
from dspy_registry.registry_store.layout import MAX_REACHED_WORDS
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS, LEVELS, Vocabulary, is_capability
from dspy_registry.writer.client import calls

WORDS = st.sampled_from("abcdefg")


def test_core_says_that_complex_reasoning_is_reasoning() -> None:
    words = Vocabulary(CORE_IMPLICATIONS)
    assert words.expand(("complex_reasoning",)) == ("complex_reasoning", "reasoning")
    assert words.expand(("reasoning", "x")) == ("reasoning", "x")


def test_levels_are_ordered() -> None:
    assert LEVELS == ("low", "medium", "high", "very_high")


def test_implications_are_transitive_and_each_word_comes_once() -> None:
    words = Vocabulary({"a": ("b", "c"), "b": ("d",), "c": ("d",), "d": ("e",)})
    assert words.expand(("a",)) == ("a", "b", "c", "d", "e")
    assert words.expand(("d", "a", "d")) == ("d", "e", "a", "b", "c")
    assert words.expand(()) == ()


@given(st.dictionaries(WORDS, st.lists(WORDS, max_size=4).map(tuple), max_size=7))
def test_what_is_accepted_has_no_cycle_and_expands_to_a_fixed_point(implications: dict[str, tuple[str, ...]]) -> None:
    reach = {word: set(implied) for word, implied in implications.items()}
    for _ in "abcdefg":
        for reached in reach.values():
            reached |= {further for word in reached for further in reach.get(word, ())}
    if any(word in reached for word, reached in reach.items()):
        with pytest.raises(VocabularyError):
            Vocabulary(implications)
        return
    words = Vocabulary(implications)
    for word in "abcdefg":
        assert set(words.expand((word,))) == {word} | reach.get(word, set())
        assert words.expand(words.expand((word,))) == words.expand((word,))


@pytest.mark.parametrize(
    ("implications", "cycle"),
    [
        ({"a": ("a",)}, "a -> a"),
        ({"a": ("b",), "b": ("a",)}, "a -> b -> a"),
        ({"x": ("a",), "a": ("b", "c"), "b": (), "c": ("d",), "d": ("a",)}, "a -> c -> d -> a"),
    ],
)
def test_a_cycle_is_named(implications: dict[str, tuple[str, ...]], cycle: str) -> None:
    with pytest.raises(VocabularyError) as caught:
        Vocabulary(implications)
    assert cycle in caught.value.message


def test_malformed_words_are_all_named() -> None:
    with pytest.raises(VocabularyError, match=r"'', 'B', 'x{65}', 'ü'"):
        Vocabulary({"": ("ü",), "B": ("x" * 65,), "fine": ("fine_too",)})


# Limits: every commit expands capabilities by the closure, and one small message could make it of any size


def chain(length: int) -> dict[str, tuple[str, ...]]:
    return {f"w{number}": (f"w{number + 1}",) for number in range(length)}


def fan(words: int, each: int) -> dict[str, tuple[str, ...]]:
    return {f"f{number}": tuple(f"w{other}" for other in range(each)) for number in range(words)}


@pytest.mark.parametrize("allowed", [chain(256), fan(1024, 64)])
def test_what_is_just_within_the_limits_is_taken(allowed: dict[str, tuple[str, ...]]) -> None:
    first, implied = next(iter(allowed.items()))
    assert set(implied) < set(Vocabulary(allowed).expand((first,)))


@pytest.mark.parametrize(
    ("refused", "why"),
    [
        (chain(257), "256 .*'w0'"),
        (chain(1024), "'w0', 'w1', 'w10', .*748"),
        (fan(1, 65), "64 .*'f0'"),
        (fan(1025, 1), "1025 .*1024"),
        ({**fan(1025, 65), "B": ("c",)}, "'B'.*1026 .*64 .*'f0', .*1005"),
    ],
)
def test_what_is_beyond_the_limits_is_named(refused: dict[str, tuple[str, ...]], why: str) -> None:
    with pytest.raises(VocabularyError, match=why) as caught:
        Vocabulary(refused)
    assert caught.value.remedy
    assert len(str(caught.value)) < 1000


def test_too_many_words_are_refused_before_anything_is_made_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(vocabulary, "TopologicalSorter")
    with pytest.raises(VocabularyError, match="85000"):
        Vocabulary(chain(85_000))


def test_a_closure_stops_where_it_is_too_large() -> None:
    assert max(map(len, vocabulary._closure(chain(1024)).values())) == MAX_REACHED_WORDS + 1


def test_the_limits_hold_for_all_sources_together() -> None:
    assert Vocabulary.combined({"a": fan(1024, 32), "b": fan(1024, 32)}) == Vocabulary(fan(1024, 32))
    with pytest.raises(VocabularyError, match="1025"):
        Vocabulary.combined({"a": fan(1024, 1), "b": {"other": ("w0",)}})


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"aa": "bcd"}, "'aa'"),
        ({"aa": None, "bb": 5, "cc": b"dd", "dd": {"e": 1}}, "'aa', 'bb', 'cc', 'dd'"),
        ({1: ["b"], None: ["c"], "d": [[], 2.5]}, r"1, None, \[\], 2\.5"),
        ({1: "b"}, "1; .* for 1"),
        ({10**5000: ["b"]}, "<int>|1000"),
        ({"\ud800": ["b"]}, "'.ud800'"),
        ({"x" * 10_000_000: ["b"]}, r"'x{30,}\.\.\.x{30,}'"),
        ([("a", ["b"])], "list"),
        (None, "NoneType"),
    ],
)
def test_i17_what_is_no_mapping_of_words_is_one_error(registry_folder: Path, given: Any, why: str) -> None:
    with RegistryWriter(registry_folder) as writer:
        with pytest.raises(VocabularyError, match=why):
            writer.set_implications(given)
        assert writer.revision == 1
    with pytest.raises(VocabularyError, match=why):
        calls.set_implications(given)


def test_any_kind_of_list_is_taken(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("a.One", capabilities=("a",)))
        writer.set_implications({"a": ["b"], "b": iter(("c",)), "c": {"d"}, "d": ()})  # type: ignore[dict-item]
        assert registry.find_by_capability("d") == ("a.One",)


@pytest.mark.parametrize("word", ["a", "a1_b", "x" * 64])
def test_capabilities(word: str) -> None:
    assert is_capability(word)


@pytest.mark.parametrize("word", ["", "A", "1a", "_a", "a-b", "a b", "ä", "a\n", "x" * 65, None, 1, b"a"])
def test_no_capabilities(word: object) -> None:
    assert not is_capability(word)


def test_i5_changing_the_vocabulary_reindexes_in_the_same_commit(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_module(ModuleInfo("a.One", capabilities=("tool_use",)))
        assert registry.find_by_capability("agency") == ()
        revision = writer.set_implications({"tool_use": ("agency",), "agency": ("autonomy",)})
        assert registry.revision == revision
        for implied in ("agency", "autonomy"):
            assert registry.find_by_capability(implied) == ("dspy.ReAct", "a.One")
        assert registry.find_by_capability("tool_use") == ("dspy.ReAct", "a.One")
        writer.set_implications({"tool_use": ("autonomy",)})
        assert registry.find_by_capability("agency") == ()
        assert registry.find_by_capability("autonomy") == ("dspy.ReAct", "a.One")
        writer.set_implications({})
        assert registry.find_by_capability("autonomy") == ()
        assert registry.find_by_capability("reasoning")[-1] == "dspy.ProgramOfThought"  # core's own stay


def test_i5_a_module_changed_together_with_the_vocabulary_is_indexed_by_the_new_one(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_modules([ModuleInfo("a.One", capabilities=("b",)), ModuleInfo("a.Two", capabilities=("c",))])

        def both(draft: object) -> None:
            draft.set_implications("client", {"b": ("c",)})  # type: ignore[attr-defined]
            draft.register(ModuleInfo("a.Two", capabilities=("b",)))  # type: ignore[attr-defined]
            draft.register(ModuleInfo("a.Three", capabilities=("b",)))  # type: ignore[attr-defined]

        writer.store.committer.commit(both)
        assert registry.find_by_capability("c") == ("a.One", "a.Two", "a.Three")


def test_a_cycle_across_sources_is_refused_and_changes_nothing(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.set_implications({"a": ("b",)})
        with pytest.raises(VocabularyError, match="complex_reasoning -> reasoning -> complex_reasoning"):
            writer.set_implications({"reasoning": ("complex_reasoning",)})
        writer.register_module(ModuleInfo("a.One", capabilities=("a",)))
        assert registry.find_by_capability("b") == ("a.One",)
