"""DSPy programs of every predictor type, on a model that needs no network, and copies of one program that drifted."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

import dspy
from dspy.utils import DummyLM

from dspy_registry.registry_store.program_document import ProgramDocument, encode_document
from dspy_registry.writer.programs import Publication

NAME: Final = "acme.Qa"
HERE: Final = "tests.support.compiled_programs"
ALLOW: Final = ("tests.support",)
EXAMPLES: Final = [dspy.Example(question=f"q{at}", answer=f"a{at}").with_inputs("question") for at in range(3)]


def model() -> Any:
    """Answers at once, and the same whatever is asked."""
    steps = {"next_thought": "t", "next_tool_name": "finish", "next_tool_args": {}, "generated_code": "SUBMIT(1)"}
    return DummyLM({"": {"answer": "yes", "reasoning": "so", "rationale": "so", "code_output": "1", **steps}})


def look_up(word: str) -> str:
    """A tool."""
    return word


def is_good(*_: Any) -> float:
    """A reward, and a metric."""
    return 1.0


class Qa(dspy.Module):  # type: ignore[misc]
    """One predictor, with two fields in and one out."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question, context -> answer")

    def forward(self, question: str, context: str = "none") -> Any:
        return self.qa(question=question, context=context)


class Forgetful(Qa):
    """It loads its state in its own way, and loses a demonstration."""

    def load_state(self, state: dict[str, Any], **options: Any) -> None:
        super().load_state(state, **options)
        self.qa.demos = self.qa.demos[1:]


class Shortening(Qa):
    """It takes a demonstration out of the list that it was given, which may be the state's."""

    def load_state(self, state: dict[str, Any], **options: Any) -> None:
        super().load_state(state, **options)
        self.qa.demos.pop()


class Consuming(Qa):
    """It takes a demonstration out of the state that it was given."""

    def load_state(self, state: dict[str, Any], **options: Any) -> None:
        state["qa"]["demos"].pop()
        super().load_state(state, **options)


class Renamed(Qa):
    """`context` is called `passage`."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question, passage -> answer")


class Reordered(Qa):
    """DSPy would swap the descriptions of the two fields."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("context, question -> answer")


class Retyped(Qa):
    """The answer is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question, context -> answer: int")


class Missing(Qa):
    """One field less."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question -> answer")


class Additional(Qa):
    """One field more."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question, context -> answer, confidence: float")


class Turned(Qa):
    """An input became an output."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = dspy.Predict("question -> context, answer")


class OtherPredictor(Qa):
    """Another attribute holds the predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = self.qa
        del self.qa


class OtherKind(Qa):
    """Another class of predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.qa = Special("question, context -> answer")


class Special(dspy.Predict):  # type: ignore[misc]
    """A predictor of the program's own."""


class Colour(Enum):
    """What an answer may be."""

    RED = "red"
    BLUE = "blue"


PREDICTORS: Final[dict[str, Any]] = {
    "Predict": lambda: dspy.Predict("question -> answer"),
    "ChainOfThought": lambda: dspy.ChainOfThought("question -> answer"),
    "ReAct": lambda: dspy.ReAct("question -> answer", tools=[look_up], max_iters=2),
    "ReActV2": lambda: dspy.ReActV2("question -> answer", tools=[look_up]),
    "ProgramOfThought": lambda: dspy.ProgramOfThought("question -> answer"),
    "CodeAct": lambda: dspy.CodeAct("question -> answer", tools=[look_up]),
    "MultiChainComparison": lambda: dspy.MultiChainComparison("question -> answer"),
    "BestOfN": lambda: dspy.BestOfN(dspy.ChainOfThought("question -> answer"), 2, is_good, 1.0),
    "Refine": lambda: dspy.Refine(dspy.ChainOfThought("question -> answer"), 2, is_good, 1.0),
    "RLM": lambda: dspy.RLM("question -> answer"),
}


def every_predictor() -> dict[str, Any]:
    """What `origin` names for each of them: see `__getattr__`."""
    return dict(PREDICTORS)


def __getattr__(name: str) -> Any:
    """`make_ReAct` and so on: functions without arguments that make a program."""
    if name.removeprefix("make_") in PREDICTORS and name.startswith("make_"):
        return PREDICTORS[name.removeprefix("make_")]
    raise AttributeError(name)


def compiled(program: Any, instructions: str = "") -> Any:
    """Compiled by a real optimizer; `instructions` replace those of its first predictor, as others do."""
    done = dspy.LabeledFewShot(k=2).compile(program, trainset=EXAMPLES)
    if instructions:
        predictor = done.named_predictors()[0][1]
        predictor.signature = predictor.signature.with_instructions(instructions)
    return done


def plain_document(mark: str = "", size: int = 0, class_path: str = f"{HERE}:Qa") -> bytes:
    """A document of no particular program, as the writer takes it: `mark` and `size` make it another one."""
    import msgspec

    state = msgspec.json.encode({"mark": mark, "filling": "x" * size})
    return encode_document(
        ProgramDocument(
            class_path=class_path, origin=class_path, dspy_version="3.4.1", predictors=(), state=msgspec.Raw(state)
        )
    )


def publication(document: bytes, **given: Any) -> Publication:
    """The publication of a document as a version of NAME."""
    from dspy_registry.registry_store.program_document import digest_of

    return Publication(**{"name": NAME, "digest": digest_of(document), **given})
