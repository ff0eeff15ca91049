"""Real programs, compiled by real optimizers: published, and loaded as published or refused by name."""

from __future__ import annotations

import copy
import datetime
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import msgspec
import pytest
from dspy.utils import DummyLM

from dspy_registry import InvalidProgramError, ProgramRefusedError, Registry, RegistryWriter
from dspy_registry.integrations.dspy import publish
from dspy_registry.integrations.publish import document_of
from dspy_registry.readers.program_shapes import type_text
from dspy_registry.readers.program_state import is_same
from dspy_registry.readers.programs import Programs
from dspy_registry.readers.rebuild import rebuild
from dspy_registry.registry_store.program_document import ProgramDocument, encode_document, encode_json
from tests.support.compiled_programs import (
    ALLOW,
    EXAMPLES,
    HERE,
    NAME,
    PREDICTORS,
    Additional,
    Colour,
    OtherKind,
    Qa,
    Special,
    compiled,
    is_good,
    model,
)


@pytest.fixture
def writer(registry_folder: Path) -> Iterator[RegistryWriter]:
    with RegistryWriter(registry_folder) as opened:
        yield opened


def refused_as(document: ProgramDocument, **changed: Any) -> tuple[str, ...]:
    with pytest.raises(ProgramRefusedError) as caught:
        rebuild(encode_document(msgspec.structs.replace(document, **changed)), NAME, ALLOW)
    return caught.value.problems


def not_published(program: Any, origin: str | None = None) -> str:
    with pytest.raises(InvalidProgramError) as caught:
        document_of(program, origin)
    return " ".join(caught.value.problems)


# Loaded as published


@pytest.mark.filterwarnings("ignore::DeprecationWarning:dspy")
@pytest.mark.parametrize("kind", sorted(PREDICTORS))
def test_i33_every_predictor_type_comes_back_with_what_was_learned(kind: str, registry_folder: Path) -> None:
    student = PREDICTORS[kind]()
    with dspy.context(lm=model()):
        optimizer = dspy.BootstrapFewShot(metric=is_good, max_bootstrapped_demos=2, max_labeled_demos=2)
        program = optimizer.compile(student, trainset=EXAMPLES)
    with RegistryWriter(registry_folder) as writer:
        publish(program, NAME, client=writer, origin=f"{HERE}:make_{kind}")
    with Registry(registry_folder) as registry:
        loaded = Programs(registry, ALLOW)[NAME]
    assert type(loaded) is type(program)
    assert loaded.dump_state() == program.dump_state()
    assert any(predictor.demos for _, predictor in loaded.named_predictors())


def test_i33_another_process_gives_the_same_outputs(writer: RegistryWriter, registry_folder: Path) -> None:
    with dspy.context(lm=model()):
        program = dspy.BootstrapFewShot(metric=is_good).compile(Qa(), trainset=EXAMPLES)
    publish(program, NAME, client=writer, label="live")
    lm = DummyLM([{"answer": "yes"}])
    with dspy.context(lm=lm):
        program(question="?")
    script = (
        "import sys, dspy\n"
        "from dspy.utils import DummyLM\n"
        "from dspy_registry import Programs, Registry\n"
        "lm = DummyLM([{'answer': 'yes'}])\n"
        "dspy.configure(lm=lm)\n"
        f"answer = Programs(Registry(sys.argv[1]), {ALLOW})['{NAME}@live'](question='?').answer\n"
        "print(repr((answer, lm.history[-1]['messages'])))\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script, str(registry_folder)], capture_output=True, text=True, check=True
    ).stdout.splitlines()[-1]
    assert told == repr(("yes", lm.history[-1]["messages"]))


# Refused by name


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("Renamed", ("context", "passage")),
        ("Reordered", ("another order",)),
        ("Retyped", ("answer", "int")),
        ("Missing", ("context", "missing")),
        ("Additional", ("confidence", "additional")),
        ("Turned", ("context", "output")),
        ("OtherPredictor", ("predictor qa", "predictor ask")),
        ("OtherKind", ("qa", "Special")),
    ],
)
def test_i33_every_drift_is_refused_by_name(other: str, words: tuple[str, ...]) -> None:
    document = document_of(compiled(Qa()))
    problems = " ".join(refused_as(document, origin=f"{HERE}:{other}", class_path=f"{HERE}:{other}"))
    for word in words:
        assert word in problems


def test_i33_another_class_release_package_or_place_is_refused() -> None:
    document = document_of(compiled(Qa()))
    assert "Additional" in refused_as(document, origin=f"{HERE}:Additional")[0]
    assert "2.6.1" in refused_as(document, dspy_version="2.6.1")[0]
    assert "os" in refused_as(document, origin="os:system")[0]
    assert "tests.supporter" in refused_as(document, origin="tests.supporter:Qa")[0]
    assert "Nowhere" in refused_as(document, origin=f"{HERE}:Nowhere")[0]
    assert "str" in refused_as(document, origin=f"{HERE}:NAME.upper")[0]


def test_code_that_ends_its_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    document = document_of(compiled(Qa()))
    monkeypatch.setattr(Qa, "__init__", lambda self: sys.exit("no key is set"))
    assert "no key is set" in refused_as(document)[0]


def test_nothing_is_imported_from_a_package_that_is_not_allowed() -> None:
    document = document_of(compiled(Qa()))
    sys.modules.pop("this", None)
    refused_as(document, origin="this:s")
    assert "this" not in sys.modules


def test_a_state_that_dspy_does_not_load_is_refused() -> None:
    document = document_of(compiled(Qa()))
    state = document.load_state()
    state["qa"]["signature"]["fields"] = "none"
    assert "DSPy does not load" in refused_as(document, state=msgspec.Raw(msgspec.json.encode(state)))[0]
    state = document.load_state()
    state["qa"]["module_src"] = "import os"
    assert "source code" in refused_as(document, state=msgspec.Raw(msgspec.json.encode(state)))[0]


LOST = ("qa.demos: is not what was published once DSPy has loaded it",)


@pytest.mark.parametrize("loader", ["Forgetful", "Shortening", "Consuming"])
def test_i33_a_program_that_loads_in_its_own_way_is_refused_if_it_loses_something(loader: str) -> None:
    document = document_of(compiled(Qa()))
    names = f"{HERE}:{loader}"
    assert refused_as(document, origin=names, class_path=names) == LOST


def test_i33_a_predictor_that_loads_in_its_own_way_is_refused_if_it_loses_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load_state(self: Any, state: dict[str, Any], **options: Any) -> Any:
        dspy.Predict.load_state(self, state, **options)
        self.demos.pop()
        return self

    names = f"{HERE}:OtherKind"
    document = document_of(compiled(OtherKind()))
    monkeypatch.setattr(Special, "load_state", load_state, raising=False)
    assert refused_as(document, origin=names, class_path=names) == LOST


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": [1]}, {"a": [True]}),
        ({"a": [1.0]}, {"a": [1]}),
        ({"a": 0.0}, {"a": -0.0}),
        ({"a": 1, "b": None}, {"a": 1, "c": None}),
        ({"a": 1}, {"a": 1, "b": None}),
        ([1, 2], [2, 1]),
        ([1], [1, 1]),
        ([{"a": "x"}], [{"a": "y"}]),
        ("1", 1),
    ],
)
def test_i33_values_of_different_json_are_never_taken_for_the_same(one: Any, other: Any) -> None:
    assert not is_same(one, other)
    assert not is_same(other, one)
    assert encode_json(one) != encode_json(other)


def test_equal_values_are_the_same() -> None:
    value = {"a": [{"b": "x", "c": None}, 1, True], "d": {}}
    assert is_same(value, copy.deepcopy(value))


def test_what_would_be_lost_is_not_published() -> None:
    program = compiled(Qa())
    program.qa.demos = [dspy.Example(question="?", when=datetime.date(2026, 1, 1))]
    assert "qa.demos[0].when: is a date" in not_published(program)
    program = compiled(Qa())
    program.qa.config["temperature"] = 0.5
    assert "temperature" in not_published(program)
    program = compiled(Qa())
    program.depth = 3
    assert "depth was set after" in not_published(program)
    program = compiled(Qa())
    program.set_lm(model())
    assert "DummyLM" in not_published(program)
    program = compiled(Qa())
    program.set_lm(dspy.LM("openai/none", api_base="http://localhost"))
    assert "api_base" in not_published(program)
    program = compiled(Qa())
    program.forward = lambda **_: None
    assert "forward was replaced" in not_published(program)


def test_what_no_worker_can_import_is_not_published() -> None:
    class Local(Qa):
        pass

    assert "inside a function" in not_published(Local())
    assert "signature" in not_published(dspy.ChainOfThought("question -> answer"))
    with pytest.raises(InvalidProgramError, match=r'origin="package\.module:name"'):
        document_of(dspy.Predict("question -> answer"))
    with pytest.raises(InvalidProgramError, match=r"Give an instance, as in publish\(Qa\(\), …\)\."):
        document_of(Qa)
    assert "confidence" in not_published(Qa(), f"{HERE}:Additional")
    assert "package.module:name" in not_published(Additional(), "nothing")


def test_a_type_is_written_out_with_what_it_holds() -> None:
    assert type_text(list[str] | None) == "list[str] | None"
    assert type_text(Colour) == f"{HERE}.Colour{{RED: 'red', BLUE: 'blue'}}"
    assert "author: str" in type_text(dspy.Predict) or type_text(dict[str, int]) == "dict[str, int]"
