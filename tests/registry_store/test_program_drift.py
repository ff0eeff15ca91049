"""Every way in which code can differ from a published program is named, and nothing else is."""

from __future__ import annotations

import pytest

from dspy_registry.registry_store.program_document import FieldShape, PredictorShape
from dspy_registry.registry_store.program_drift import drift

QUESTION = FieldShape("question", "input", "str")
CONTEXT = FieldShape("context", "input", "list[str]")
ANSWER = FieldShape("answer", "output", "str")


def qa(*fields: FieldShape, name: str = "qa", kind: str = "dspy:Predict") -> PredictorShape:
    return PredictorShape(name, kind, fields)


PUBLISHED = (qa(QUESTION, CONTEXT, ANSWER), qa(QUESTION, ANSWER, name="check"))
CHECK = PUBLISHED[1]


def test_i33_what_fits_has_no_drift() -> None:
    assert drift(PUBLISHED, PUBLISHED) == ()
    assert drift((), ()) == ()


@pytest.mark.parametrize(
    ("here", "words"),
    [
        ((qa(QUESTION, FieldShape("passage", "input", "list[str]"), ANSWER), CHECK), ("context", "passage", "called")),
        ((qa(CONTEXT, QUESTION, ANSWER), CHECK), ("another order", "context, question, answer")),
        ((qa(QUESTION, CONTEXT, FieldShape("answer", "output", "int")), CHECK), ("answer", "int", "str", "type")),
        ((qa(QUESTION, CONTEXT, FieldShape("answer", "input", "str")), CHECK), ("answer", "input", "output")),
        ((qa(QUESTION, ANSWER), CHECK), ("context", "missing")),
        ((qa(QUESTION, CONTEXT, ANSWER, FieldShape("score", "output", "float")), CHECK), ("score", "additional")),
        ((qa(QUESTION, CONTEXT, ANSWER, kind="acme:Own"), CHECK), ("acme:Own", "dspy:Predict")),
        ((PUBLISHED[0],), ("predictor check", "missing")),
        ((*PUBLISHED, qa(name="judge")), ("predictor judge", "additional")),
        ((CHECK, PUBLISHED[0]), ("another order", "check, qa")),
    ],
)
def test_i33_each_drift_is_named(here: tuple[PredictorShape, ...], words: tuple[str, ...]) -> None:
    lines = drift(PUBLISHED, here)
    assert len(lines) == 1
    for word in words:
        assert word in lines[0]


def test_all_drifts_are_named_at_once() -> None:
    here = (qa(FieldShape("answer", "output", "int"), QUESTION),)
    named = " ".join(drift(PUBLISHED, here))
    for word in ("context", "int", "predictor check"):
        assert word in named
