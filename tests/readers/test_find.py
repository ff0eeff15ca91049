"""`find`: conditions in any combination and form, each answered as the simplest words would have it."""

from __future__ import annotations

import re
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import InvalidArgumentError, ModuleInfo, Registry, RegistryWriter
from dspy_registry.readers.plan import plan_find
from dspy_registry.registry_store.vocabulary import LEVELS
from tests.support import queried
from tests.support.queried import MODULES

folder = queried.folder
queries = queried.queries


def fits(info: ModuleInfo, conditions: dict[str, Any]) -> bool:
    """What `find` promises, in the simplest words."""
    needs = info.requirements
    implied = {"complex_reasoning": ("complex_reasoning", "reasoning")}
    has = {further for word in info.capabilities for further in implied.get(word, (word,))}
    wanted = conditions["capabilities"]
    levels = (("max_memory", needs.memory), ("max_compute", needs.compute))
    exact = (
        ("category", info.category),
        ("pool_type", info.pool_type),
        ("native", info.native_available),
        ("gpu", needs.gpu),
    )
    return (
        has.issuperset((wanted,) if isinstance(wanted, str) else wanted)
        and all(conditions[name] in (None, value) for name, value in exact)
        and all(
            conditions[name] is None or LEVELS.index(value) <= LEVELS.index(conditions[name]) for name, value in levels
        )
    )


CHOICES: dict[str, tuple[Any, ...]] = {
    "capabilities": ((), "reasoning", ("a", "b")),
    "category": (None, "beta"),
    "pool_type": (None, "neural"),
    "native": (None, True, False),
    "gpu": (None, True, False),
    "max_memory": (None, "low", "high"),
    "max_compute": (None, "medium"),
}


def test_every_combination_of_conditions(queries: Any) -> None:
    core = [queries[name] for name in list(queries)[:6]]
    for values in product(*CHOICES.values()):
        conditions = dict(zip(CHOICES, values, strict=True))
        expected = tuple(info.name for info in (*core, *MODULES) if fits(info, conditions))
        for _ in range(2):
            assert queries.find(**conditions) == expected


def test_conditions_may_be_given_in_any_form(queries: Any) -> None:
    expected = queries.find(("a", "b"))
    assert expected
    for capabilities in (["a", "b"], ("b", "a"), {"a", "b"}, iter(["a", "b"]), dict.fromkeys("ab"), ("a", "b", "a")):
        assert queries.find(capabilities) == expected
    assert queries.find() == tuple(queries)
    assert queries.find(capabilities=[]) == tuple(queries)
    assert queries.find(capabilities=None) == queries.find(capabilities=None) == tuple(queries)
    assert queries.find(None, pool_type="optimizer") == queries.find(pool_type="optimizer") != ()
    assert queries.find(capabilities="a") == queries.find(["a"]) == queries.find_by_capability("a")
    assert queries.find(max_memory="very_high") == tuple(queries)


def test_a_list_changed_between_two_calls_is_asked_anew(queries: Any) -> None:
    wanted = ["a"]
    assert queries.find(wanted) == queries.find_by_capability("a")
    wanted.append("b")
    assert queries.find(wanted) == queries.find(("a", "b"))


@pytest.mark.parametrize("level", ["huge", "", "LOW"])
def test_another_level_is_an_error(queries: Any, level: Any) -> None:
    for condition in ("max_memory", "max_compute"):
        with pytest.raises(InvalidArgumentError, match=re.escape(repr(level))):
            queries.find(**{condition: level})


def test_a_plan_is_terms() -> None:
    assert plan_find(("a",), None, "p", False, None, "medium", None) == (
        (("capability:a",), ("pool:p",), ("native:no",), ("memory:low", "memory:medium")),
        (),
    )
    some, none = plan_find((), None, None, None, None, None, None, ("a", "b"), "c")
    assert (some, none) == ((("capability:a", "capability:b"),), ("capability:c",))
    some, none = plan_find((), None, None, None, None, None, None, (), "c")
    assert (some, none) == ((("native:yes", "native:no"),), ("capability:c",))


def test_kept_answers_of_different_questions_are_not_confused(registry_folder: Path) -> None:
    questions: list[dict[str, Any]] = [
        {},
        {"capabilities": "reasoning"},
        {"capabilities": ("reasoning",)},
        {"category": "reasoning"},
        {"pool_type": "reasoning"},
        {"capabilities": ("general",)},
        {"pool_type": "general"},
        {"category": "general"},
        {"max_memory": "low"},
        {"max_compute": "low"},
        {"pool_type": "general", "max_memory": "medium"},
        {"pool_type": "general", "max_compute": "medium"},
        {"native": True},
        {"gpu": True},
        {"native": False, "gpu": False},
        {"capabilities": "reasoning", "pool_type": "general", "max_memory": "medium", "gpu": False},
        {"capabilities": "reasoning", "pool_type": "general", "max_memory": "medium"},
    ]
    with RegistryWriter(registry_folder), Registry(registry_folder) as registry, registry.snapshot() as snapshot:
        wanted = [snapshot.find(**question) for question in questions]
        for _ in range(3):
            assert [registry.find(**question) for question in questions] == wanted


class Word(str, Enum):
    """Equal to a word, and formatted as something else."""

    A = "a"
    ALPHA = "alpha"
    NEURAL = "neural"
    LOW = "low"


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("capabilities", Word.A),
        ("capabilities", (Word.A,)),
        ("capabilities", (1,)),
        ("capabilities", b"a"),
        ("any_capabilities", Word.A),
        ("without_capabilities", [Word.A]),
        ("category", Word.ALPHA),
        ("pool_type", Word.NEURAL),
        ("pool_type", 1),
        ("native", "no"),
        ("native", 0),
        ("gpu", 1.0),
        ("max_memory", Word.LOW),
        ("max_compute", 1),
    ],
)
def test_a_question_is_of_exactly_these_types(folder: Path, condition: str, value: Any) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        for queries in (registry, snapshot, registry):
            with pytest.raises(TypeError):
                queries.find(**{condition: value})


def test_a_question_of_another_type_spoils_no_answer(folder: Path) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot:
        questions = ((registry.find_by_capability, Word.A), (registry.find_by_category, Word.ALPHA))
        for ask, word in questions:
            with pytest.raises(TypeError):
                ask(word)
            kept = ask(word.value)
            assert kept == ask(word.value) == getattr(snapshot, ask.__name__)(word.value) != ()
            assert ask(word) == kept  # it is kept now, and right for an equal key


@pytest.mark.parametrize("call", ["get_module", "describe", "history", "has_native", "overridden"])
@pytest.mark.parametrize("name", [1, None, [], b"m.M1"])
def test_a_name_is_a_string(queries: Any, call: str, name: Any) -> None:
    with pytest.raises(TypeError):
        getattr(queries, call)(name)


def test_raw_takes_a_string(folder: Path) -> None:
    with Registry(folder) as registry, registry.snapshot() as snapshot, pytest.raises(TypeError, match="name"):
        snapshot.raw(1)  # type: ignore[arg-type]


# Any of these, and none of those


@pytest.mark.parametrize("wanted", [(), ("a",), ("b", "reasoning"), ("b", "nothing")])
@pytest.mark.parametrize("unwanted", [(), ("b",), ("reasoning",), ("a", "reasoning"), ("nothing",)])
@pytest.mark.parametrize("category", [None, "alpha"])
def test_any_and_none_of_the_capabilities(
    queries: Any, wanted: tuple[str, ...], unwanted: tuple[str, ...], category: str | None
) -> None:
    def has(info: ModuleInfo, word: str) -> bool:
        return word in info.capabilities or (word == "reasoning" and "complex_reasoning" in info.capabilities)

    expected = [
        info.name
        for info in queries.values()
        if (not wanted or any(has(info, word) for word in wanted))
        and not any(has(info, word) for word in unwanted)
        and category in (None, info.category)
    ]
    for _ in range(2):
        found = queries.find(category=category, any_capabilities=wanted, without_capabilities=unwanted)
        assert list(found) == expected


def test_an_answer_without_a_capability_follows_changes(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer, Registry(registry_folder) as registry:
        for _ in range(3):
            assert "acme.New" not in registry.find(without_capabilities="reasoning")
        writer.register_module(ModuleInfo("acme.New"))
        assert "acme.New" in registry.find(without_capabilities="reasoning")
        writer.register_module(ModuleInfo("acme.New", capabilities=("complex_reasoning",)))
        assert "acme.New" not in registry.find(without_capabilities="reasoning")


def test_what_is_only_implied_is_told(queries: Any) -> None:
    assert queries.implied_capabilities("m.M2") == ("reasoning",)
    assert queries.implied_capabilities("m.M1") == ()
