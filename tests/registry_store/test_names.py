"""Short names: how they are formed, what they resolve to, and that a change names every string it may concern."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspy_registry import AmbiguousNameError, ModuleInfo, Registry, RegistryWriter, Requirements, UnknownModuleError
from dspy_registry.registry_store.names import (
    are_indexed_alike,
    is_directly_in_dspy,
    last_part,
    lookup_keys,
    short_terms,
    snake_case,
    terms,
)
from dspy_registry.registry_store.vocabulary import CORE_IMPLICATIONS, Vocabulary


@pytest.mark.parametrize(
    ("word", "snake"),
    [
        ("Predict", "predict"),
        ("predict", "predict"),
        ("ChainOfThought", "chain_of_thought"),
        ("chain_of_thought", "chain_of_thought"),
        ("ReAct", "re_act"),
        ("MIPROv2", "miprov2"),
        ("ColBERTv2", "col_bertv2"),
        ("BootstrapFewShotWithRandomSearch", "bootstrap_few_shot_with_random_search"),
        ("HTTPServer", "http_server"),
        ("GEPA", "gepa"),
        ("KNNFewShot", "knn_few_shot"),
        ("X", "x"),
        ("Größe", "größe"),
        ("", ""),
    ],
)
def test_snake_case(word: str, snake: str) -> None:
    assert snake_case(word) == snake


@given(st.text(st.characters(codec="ascii")))
def test_snake_case_of_ascii_stays_as_it_is(word: str) -> None:
    assert snake_case(snake_case(word)) == snake_case(word)


@pytest.mark.parametrize(
    ("name", "home"),
    [("dspy.Predict", True), ("dspy.retrievers.Embeddings", False), ("acme.Predict", False), ("Predict", False)],
)
def test_home_is_directly_in_dspy(name: str, home: bool) -> None:
    assert is_directly_in_dspy(name) == home
    assert (f"home:{snake_case(last_part(name))}" in short_terms(name)) == home


MODULES = (
    *("acme.Predict", "acme.Summarise", "other.Summarise", "acme.OnlyHere", "acme.deep.Nested", "dspy.deep.Nested"),
    *("dspy.retrievers.Embeddings", "plain", "acme.Plain", "acme.HTTPServer", "other.HttpServer", "acme.Größe"),
)


@pytest.fixture
def registry(registry_folder: Path) -> Registry:
    with RegistryWriter(registry_folder) as writer:
        writer.register_modules([ModuleInfo(name) for name in MODULES])
        writer.set_alias("summary", "other.Summarise")
        writer.set_alias("dspy.Alias", "acme.Predict")
        writer.set_alias("onlyhere", "dspy.ReAct")
    return Registry(registry_folder)


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("dspy.Predict", "dspy.Predict"),
        ("Predict", "dspy.Predict"),
        ("predict", "dspy.Predict"),
        ("acme.Predict", "acme.Predict"),
        ("chain_of_thought", "dspy.ChainOfThought"),
        ("MIPROv2", "dspy.MIPROv2"),
        ("miprov2", "dspy.MIPROv2"),
        ("OnlyHere", "acme.OnlyHere"),
        ("only_here", "acme.OnlyHere"),
        ("onlyhere", "dspy.ReAct"),
        ("summary", "other.Summarise"),
        ("dspy.Alias", "acme.Predict"),
        ("Embeddings", "dspy.retrievers.Embeddings"),
        ("embeddings", "dspy.retrievers.Embeddings"),
        ("plain", "plain"),
        ("Plain", "acme.Plain"),
        ("HTTPServer", "acme.HTTPServer"),
        ("HttpServer", "other.HttpServer"),
        ("Größe", "acme.Größe"),
        ("größe", "acme.Größe"),
    ],
)
def test_full_name_then_alias_then_last_part_then_snake_case(registry: Registry, asked: str, name: str) -> None:
    with registry, registry.snapshot() as snapshot:
        for _ in range(3):  # uncached, and cached
            assert registry.get_module(asked).name == name
        assert snapshot.get_module(asked).name == snapshot.describe(asked).info.name == name
        assert registry.describe(asked).info.name == name
        assert (asked in registry) == (asked == name)
        assert registry.get(asked, "default") == (registry[name] if asked == name else "default")


@pytest.mark.parametrize(
    ("asked", "candidates"),
    [
        ("Summarise", ("acme.Summarise", "other.Summarise")),
        ("summarise", ("acme.Summarise", "other.Summarise")),
        ("Nested", ("acme.deep.Nested", "dspy.deep.Nested")),
        ("http_server", ("acme.HTTPServer", "other.HttpServer")),
    ],
)
def test_what_fits_several_is_an_error_that_lists_them(
    registry: Registry, asked: str, candidates: tuple[str, ...]
) -> None:
    with registry, registry.snapshot() as snapshot:
        for queries in (registry, snapshot):
            for ask in (queries.get_module, queries.get_pool_type, queries.has_native, queries.describe):
                with pytest.raises(AmbiguousNameError) as caught:
                    ask(asked)
                assert caught.value.candidates == candidates
            assert asked not in queries
            assert queries.get(asked) is None


@pytest.mark.parametrize(
    "asked",
    [
        "PREDICT",
        "Chain_Of_Thought",
        "chainOfThought",
        "deep.Nested",
        "retrievers.Embeddings",
        "dspy",
        ".Predict",
        "dspy.",
    ],
)
def test_what_fits_nothing_is_unknown(registry: Registry, asked: str) -> None:
    with registry, pytest.raises(UnknownModuleError):
        registry.get_module(asked)


@pytest.mark.parametrize(
    ("asked", "closest"),
    [("dspy.Predikt", "dspy.Predict"), ("chain_of_thoughts", ""), ("acme.OnlyHer", "acme.OnlyHere")],
)
def test_an_unknown_name_comes_with_the_closest_ones(registry: Registry, asked: str, closest: str) -> None:
    with registry, pytest.raises(KeyError) as caught:
        registry.get_module(asked)
    assert isinstance(caught.value, UnknownModuleError)
    assert (caught.value.name, caught.value.closest[:1]) == (asked, (closest,) if closest else caught.value.closest[:1])
    assert repr(asked) in str(caught.value)


@pytest.mark.parametrize("asked", ["predict", "Predict"])
def test_a_short_name_where_a_full_one_is_wanted_is_not_led_astray(registry: Registry, asked: str) -> None:
    with registry, pytest.raises(UnknownModuleError) as caught:
        registry[asked]
    assert caught.value.closest == ("dspy.Predict",)
    assert caught.value.remedy.endswith("Give the full name.")


@pytest.mark.parametrize(
    "asked", ["", "\0", "dspy.Predict\0", "\ud800", "x" * 256, "x" * 10_000, "ü" * 128, "\n", " ", "*"]
)
def test_i17_no_name_does_any_harm(registry: Registry, asked: str) -> None:
    with registry, registry.snapshot() as snapshot:
        for queries in (registry, snapshot):
            for ask in (queries.get_module, queries.__getitem__, queries.get_pool_type, queries.describe):
                with pytest.raises(UnknownModuleError):
                    ask(asked)
            assert asked not in queries
            assert queries.get(asked, 3) == 3
            assert queries.has_native(asked) is False
            for find in (queries.find_by_capability, queries.find_by_category, queries.find):
                assert find(asked) == ()
        with pytest.raises(UnknownModuleError):
            snapshot.raw(asked)


def test_i17_a_term_with_a_zero_in_it_is_not_another_term(registry: Registry) -> None:
    with registry:
        for tail in ("\0", "\0" * 4, "\0" * 5):
            assert registry.find_by_capability(f"reasoning{tail}") == ()


def test_two_short_names_with_one_checksum_are_told_apart(registry_folder: Path) -> None:
    """Short names are indexed by their CRC-32; these two have the same."""
    one, other = "iiwucoup", "uejgtcuo"
    assert short_terms(one) == short_terms(other)
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        writer.register_modules([ModuleInfo(f"a.{one}"), ModuleInfo(f"a.{other.title()}")])
        for _ in range(3):
            assert registry.get_module(one).name == f"a.{one}"
            assert registry.get_module(other).name == f"a.{other.title()}"
        writer.unregister_module(f"a.{one}")
        with pytest.raises(UnknownModuleError):
            registry.get_module(one)
        assert registry.get_module(other).name == f"a.{other.title()}"


PARTS = st.sampled_from(["A", "a", "Ab", "ab", "aB", "AB", "a_b", "A_b", "ABv2", "b", "É", "é", "İ", "Straße", "ß"])
NAMES = st.lists(PARTS, min_size=1, max_size=3).map(".".join) | PARTS.map("dspy.{}".format)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(NAMES, min_size=1, max_size=8, unique=True), st.lists(st.tuples(NAMES, st.integers(0, 7)), max_size=2))
def test_i1_a_change_names_every_string_that_may_resolve_to_the_module(
    names: list[str], aliases: list[tuple[str, int]]
) -> None:
    """Otherwise a cached answer would outlive the change."""
    with tempfile.TemporaryDirectory() as folder:
        with RegistryWriter(folder) as writer:
            writer.register_modules([ModuleInfo(name) for name in names])
            for alias, index in aliases:
                if alias not in names:  # which no alias may shadow
                    writer.set_alias(alias, names[index % len(names)])
        declared = {alias for alias, _ in aliases if alias not in names}
        asked = {*names, *declared}
        asked |= {part for name in names for part in (last_part(name), snake_case(last_part(name)), name.lower())}
        asked |= {name.partition(".")[2] or name for name in names} | {snake_case(name) for name in names}
        with Registry(folder) as registry:
            for question in asked:
                try:
                    found = registry.get_module(question).name
                except (UnknownModuleError, AmbiguousNameError):
                    continue
                assert question in lookup_keys(found) or question in declared


RECORDS = st.builds(
    ModuleInfo,
    st.just("acme.Sorter"),
    category=st.sampled_from(["a", "b"]),
    capabilities=st.lists(st.sampled_from(["reasoning", "complex_reasoning", "tool_use"]), max_size=2, unique=True).map(
        tuple
    ),
    pool_type=st.sampled_from(["a", "b"]),
    native_available=st.booleans(),
    requirements=st.builds(
        Requirements,
        memory=st.sampled_from(["low", "high"]),
        compute=st.sampled_from(["low", "high"]),
        gpu=st.booleans(),
        extra=st.sampled_from([{}, {"x": 1}]),
    ),
    metadata=st.sampled_from([{}, {"x": 1}]),
)


@given(RECORDS, RECORDS)
def test_records_that_are_indexed_alike_have_the_same_terms(one: ModuleInfo, other: ModuleInfo) -> None:
    words = Vocabulary(CORE_IMPLICATIONS)
    assert are_indexed_alike(one, msgspec.structs.replace(one, metadata={"y": 2}, examples=("e",)))
    if are_indexed_alike(one, other):
        assert terms(one, words) == terms(other, words)
    else:
        assert terms(one, Vocabulary({})) != terms(other, Vocabulary({}))
