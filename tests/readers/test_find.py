"""`find`: conditions in any combination and form, each answered as the simplest words would have it."""

from __future__ import annotations

import re
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


@pytest.mark.parametrize("level", ["huge", "", "LOW", 1])
def test_another_level_is_an_error(queries: Any, level: Any) -> None:
    for condition in ("max_memory", "max_compute"):
        with pytest.raises(InvalidArgumentError, match=re.escape(repr(level))):
            queries.find(**{condition: level})


def test_a_plan_is_terms() -> None:
    assert plan_find(("a",), None, "p", False, None, "medium", None) == (
        ("capability:a",),
        ("pool:p",),
        ("native:no",),
        ("memory:low", "memory:medium"),
    )


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
