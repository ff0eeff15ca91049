"""Every argument of every public method is of exactly the types that its annotation names, or it is a TypeError."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import pytest

from dspy_registry import (
    AsyncWriterClient,
    InvalidArgumentError,
    InvalidModuleError,
    ModuleInfo,
    Registry,
    RegistryWriter,
    Route,
    Snapshot,
    VocabularyError,
    WriterClient,
)
from dspy_registry.readers.limits import checked_patience
from dspy_registry.registry_store.arguments import WrongTypeError, typed
from dspy_registry.registry_store.policy import Policy

NAME = "dspy.ReAct"


class Word(str, Enum):
    NAME = "dspy.ReAct"
    REASONING = "reasoning"
    NORMAL = "normal"
    DECLARED = "declared"
    COST = "cost"


class Number(IntEnum):
    ONE = 1


class Decimal(float):
    pass


class Liar(str):
    """It equals another string than it says."""

    def __eq__(self, other: object) -> bool:
        return other == NAME

    def __hash__(self) -> int:
        return hash(NAME)


Weights = dict[str, int]


@typed
def of_alias(weights: Weights | None) -> Weights | None:
    return weights


def test_an_alias_is_no_class_and_is_not_checked() -> None:
    """On Python 3.10 it says that it is one."""
    assert of_alias({"a": 1}) == {"a": 1}


VALUES: list[Any] = [Word.REASONING, Number.ONE, Decimal(1), "1", b"1", 1, 1.0, True, None, [], {}, [1], object()]
"""Values of many types. Those that an annotation allows are not among the wrong ones for it."""

RIGHT: dict[str, Any] = {
    "name": NAME,
    "new_name": "a.New",
    "alias": "another",
    "capability": "reasoning",
    "category": "reasoning",
    "kind": "category",
    "revision": 1,
    "version": 1,
    "versions": 1,
    "label": "live",
    "action": "pause",
    "pattern": "a.*",
    "policy": Policy(max_concurrency=1),
    "seconds": 1.0,
    "info": ModuleInfo(name="a.B"),
    "infos": (),
    "updates": (),
    "implications": {},
    "batch": b"",
    "document": b"",
    "publication": None,
    "report": None,
    "target": None,
}
"""What is given for the arguments that a method needs, while another is wrong."""

NOT_CHECKED = frozenset(("default", "infos", "updates", "implications"))
"""Values that the method keeps apart, or of which it checks every part: those have tests of their own."""

AS_A_DICT = frozenset(("get", "pop"))
"""Whatever a dict is asked for, it says whether it has it."""


def methods(kind: type) -> list[str]:
    found = [name for name, member in inspect.getmembers(kind, callable) if not name.startswith("_")]
    return [name for name in found if name not in AS_A_DICT]


def fits(annotation: str, argument: str, value: object) -> bool:
    """Whether the annotation allows this value."""
    words = set(annotation.split(" | "))
    kinds = {"str": str, "int": int, "bool": bool, "bytes": bytes, "ModuleInfo": ModuleInfo, "Policy": Policy}
    if type(value) in {kinds.get(word) for word in words} or (value is None and "None" in words):
        return True
    if "float" in words and type(value) in (int, float):
        return True
    if "Iterable[str]" in words and (value == [] or value == {}):
        return True
    if {"Weights", "Mapping"} & words and isinstance(value, dict):
        return True
    return argument in ("name", "names", "exclude") and isinstance(value, str)  # a key: see `arguments`


def wrong_arguments(method: Callable[..., Any]) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    parameters = {n: p for n, p in inspect.signature(method).parameters.items() if n not in ("self", "progress")}
    needed = {name: RIGHT[name] for name, each in parameters.items() if each.default is inspect.Parameter.empty}
    for name, each in parameters.items():
        if name in NOT_CHECKED:
            continue
        for value in VALUES:
            if not fits(each.annotation.replace("Preference", "str").replace("Accept", ""), name, value):
                yield name, value, {**needed, name: value}


def refused(kind: type, thing: Any) -> int:
    """How many wrong arguments were refused; the test fails if any was not."""
    failed: list[str] = []
    tried = 0
    for method in methods(kind):
        for argument, value, arguments in wrong_arguments(getattr(kind, method)):
            tried += 1
            problem = answer_to(getattr(thing, method), arguments)
            if problem:
                failed.append(f"{method}({argument}={value!r}): {problem}")
    assert not failed, "\n".join(failed)
    return tried


def answer_to(method: Callable[..., Any], arguments: dict[str, Any]) -> str:
    """What happened instead of a WrongTypeError."""
    try:
        answer = method(**arguments)
        if inspect.iscoroutine(answer):
            answer = asyncio.run(answer)
    except WrongTypeError:
        return ""
    except Exception as error:
        return f"raises {error!r}"
    return f"answers {answer!r}"


@pytest.fixture
def registry(registry_folder: Path) -> Iterator[Registry]:
    RegistryWriter(registry_folder).close()
    with Registry(registry_folder) as registry:
        yield registry


@pytest.mark.parametrize("is_asked_before", [False, True])
def test_a_registry_takes_exactly_these_types(registry: Registry, is_asked_before: bool) -> None:
    if is_asked_before:  # with other arguments than are asked for then
        for _ in range(2):
            registry.get_module("predict")
            registry.route("embeddings")
    assert refused(Registry, registry) > 250


def test_a_snapshot_takes_exactly_these_types(registry: Registry) -> None:
    with registry.snapshot() as snapshot:
        assert refused(Snapshot, snapshot) > 250


def test_a_writer_takes_exactly_these_types(registry_folder: Path) -> None:
    with RegistryWriter(registry_folder) as writer:
        before = writer.revision
        assert refused(RegistryWriter, writer) > 150
        assert writer.revision == before


@pytest.mark.parametrize("kind", [WriterClient, AsyncWriterClient])
def test_a_client_takes_exactly_these_types(registry_folder: Path, kind: type) -> None:
    assert refused(kind, kind(registry_folder)) > 200  # there is no daemon: nothing may be sent


@pytest.mark.parametrize("kind", [RegistryWriter, WriterClient])
def test_what_has_parts_says_which_part_is_wrong(registry_folder: Path, kind: Any) -> None:
    with kind(registry_folder) as writer:
        for wrong in (1, None, [1], object()):
            with pytest.raises(TypeError):
                writer.set_labels(wrong)
            with pytest.raises(WrongTypeError):
                writer.register_modules((), progress=wrong if wrong is not None else 5)
            with pytest.raises((TypeError, VocabularyError)):
                writer.set_implications(wrong)
            with pytest.raises((TypeError, InvalidModuleError)):
                writer.register_modules(wrong)


def test_an_error_says_what_is_taken_and_is_caught_as_both() -> None:
    with pytest.raises(WrongTypeError, match=r"patience is an int or a float or None, not Word") as caught:
        checked_patience(Word.COST)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, InvalidArgumentError)


# What is kept


ASKED: list[Callable[[Registry, Any], object]] = [
    lambda registry, name: registry.get_module(name).name,
    lambda registry, name: registry.get_pool_type(name),
    lambda registry, name: registry.has_native(name),
    lambda registry, name: registry.estimate_duration(name),
    lambda registry, name: registry.estimate_duration(name, basis="auto"),
    lambda registry, name: registry.routing_recommendation(name),
    lambda registry, name: registry.routing_recommendation(name, basis="auto"),
    lambda registry, name: registry.route(names=name).name,
    lambda registry, name: registry.route(names=(name,)).name,
    lambda registry, name: registry.route("reasoning", exclude=(name,)).name,
    lambda registry, name: registry.resolve(name).name,
    lambda registry, name: registry.policy(name),
    lambda registry, name: registry.usage(name),
    lambda registry, name: registry.describe(name).info.name,
    lambda registry, name: [each.info.name for each in registry.history(name)],
]


@pytest.mark.parametrize("ask", ASKED)
def test_a_string_that_lies_spoils_no_answer(registry: Registry, registry_folder: Path, ask: Any) -> None:
    with Registry(registry_folder) as other:
        right, of_liar = ask(other, NAME), ask(other, "dspy.ColBERTv2")
    for _ in range(3):
        assert ask(registry, Liar("dspy.ColBERTv2")) in (of_liar, right)  # never anything else
    for _ in range(3):
        assert ask(registry, NAME) == right
        assert ask(registry, "dspy.ColBERTv2") == of_liar


@pytest.mark.parametrize("ask", ASKED)
def test_an_enums_member_means_the_name_that_it_equals(registry: Registry, registry_folder: Path, ask: Any) -> None:
    with Registry(registry_folder) as other:
        right = ask(other, NAME)
    for name in (Word.NAME, NAME, Word.NAME, NAME, Word.NAME):
        assert ask(registry, name) == right


def ranked(route: Route) -> list[tuple[str, float]]:
    return [(candidate.name, candidate.score) for candidate in route.alternatives]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ({"category": Word.REASONING}, {"category": "reasoning"}),
        ({"capabilities": (Word.REASONING,)}, {"capabilities": ("reasoning",)}),
        ({"native": 0}, {"native": False}),
        ({"gpu": 0.0}, {"gpu": False}),
        ({"input_size": 5000.0}, {"input_size": 5000}),
        ({"prefer": Word.COST}, {"prefer": "cost"}),
        ({"basis": Word.DECLARED}, {"basis": "declared"}),
        ({"deadline_ms": Decimal(60_000)}, {"deadline_ms": 60_000}),
    ],
)
def test_a_wrong_type_never_spoils_a_route(registry: Registry, wrong: Any, right: Any) -> None:
    with registry.snapshot() as snapshot:
        for _ in range(2):
            for queries in (registry, snapshot):
                with pytest.raises(TypeError):
                    queries.route(**wrong)
        expected = ranked(snapshot.route(**right))
    for _ in range(3):
        assert ranked(registry.route(**right)) == expected
