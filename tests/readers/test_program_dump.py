"""A program's state is what DSPy dumps, whatever its demonstrations hold."""

from __future__ import annotations

from typing import Any

import dspy
import pydantic
import pytest

from dspy_registry.readers.program_dump import dumped
from tests.support.compiled_programs import EXAMPLES, PREDICTORS, Qa, compiled, is_good, model


class Note(pydantic.BaseModel):
    """A value that is no JSON."""

    text: str


class Numbered(dspy.Example):  # type: ignore[misc]
    """An example that dumps itself in its own way."""

    def toDict(self) -> dict[str, Any]:
        return {"number": 1}


DEMOS: list[Any] = [
    dspy.Example(question="q", answer="a").with_inputs("question"),
    {"question": "q", "augmented": True, "score": 0.5, "nothing": None},
    dspy.Example(question=Note(text="n"), answer="a"),
    dspy.Example(dspy_uuid="1", answer="a"),
    {"question": Note(text="n")},
    {"question": ["a", {"b": 1}]},
    dspy.Example(question=dspy.Example(inner="x"), answer=("a", "b")),
    Numbered(question="q"),
    dspy.Prediction(answer="a"),
    {},
    dspy.Example(),
]


def with_demos(demos: Any) -> Any:
    program = Qa()
    program.qa.demos = demos
    return program


@pytest.mark.parametrize("demo", DEMOS, ids=range(len(DEMOS)))
def test_a_demonstration_comes_out_as_dspy_dumps_it(demo: Any) -> None:
    program = with_demos([demo])
    assert dumped(program) == program.dump_state()


@pytest.mark.parametrize(
    "demos",
    [
        [*DEMOS, *reversed(DEMOS)],
        [{"question": "q"}, {"answer": "a"}],
        [dspy.Example(question="q", dspy_uuid="1"), dspy.Example(answer="a", score=0.5)],
        [dspy.Example(question="q"), dspy.Example(answer=Note(text="n"))],
        [],
    ],
)
def test_demonstrations_keep_their_order(demos: list[Any]) -> None:
    program = with_demos(demos)
    assert dumped(program) == program.dump_state()


@pytest.mark.parametrize("demos", [["text"], [["q"]], [None], "text", None])
def test_what_dspy_does_not_dump_is_not_dumped(demos: Any) -> None:
    program = with_demos(demos)
    with pytest.raises((AttributeError, TypeError)):
        program.dump_state()
    with pytest.raises((AttributeError, TypeError)):
        dumped(program)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:dspy")
@pytest.mark.parametrize("kind", sorted(PREDICTORS))
def test_every_predictor_type_comes_out_as_dspy_dumps_it(kind: str) -> None:
    with dspy.context(lm=model()):
        optimizer = dspy.BootstrapFewShot(metric=is_good, max_bootstrapped_demos=2, max_labeled_demos=2)
        program = optimizer.compile(PREDICTORS[kind](), trainset=EXAMPLES)
    assert dumped(program) == program.dump_state()


def test_the_program_is_not_touched() -> None:
    """Other threads may be answering with it."""
    program = compiled(Qa())
    before, held = dict(vars(program.qa)), list(program.qa.demos)
    dumped(program)
    assert vars(program.qa) == before
    assert all(one is other for one, other in zip(program.qa.demos, held, strict=True))


def test_code_that_dumps_in_its_own_way_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    program = compiled(Qa())
    program.dump_state = lambda: {"mine": 1}
    assert dumped(program) == {"mine": 1}
    program = compiled(Qa())
    program.qa.dump_state = lambda json_mode=True: {"mine": 2}
    assert dumped(program) == {"qa": {"mine": 2}}
    monkeypatch.setattr(dspy.Predict, "dump_state", lambda self, json_mode=True: {"demos": [], "mine": 3})
    program = compiled(Qa())
    program.qa.demos = []
    assert dumped(program) == {"qa": {"demos": [], "mine": 3}}
