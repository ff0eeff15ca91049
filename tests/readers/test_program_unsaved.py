"""Every module inside a program is looked at before it is published."""

from __future__ import annotations

from typing import Any

import dspy
import pytest

from dspy_registry.readers.program_unsaved import _sub_modules
from tests.support.compiled_programs import PREDICTORS, Qa, compiled


class Keeping(dspy.Predict):  # type: ignore[misc]
    """A predictor that dumps its state in its own way."""

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        return {}


def nested() -> Any:
    """Modules in lists, dicts, tuples and modules, one of them twice, and a list that holds itself."""
    program, one = Qa(), Qa()
    held: list[Any] = [one, {"a": Qa(), "b": (dspy.Predict("q -> a"), one)}, "text", 1]
    held.append(held)
    program.held, program.again = held, one
    return program


def keeping() -> Any:
    """What its state does not hold may be a module."""
    predictor = Keeping("q -> a")
    predictor.demos = [Qa()]
    return predictor


@pytest.mark.filterwarnings("ignore::DeprecationWarning:dspy")
@pytest.mark.parametrize("make", [*PREDICTORS.values(), nested, keeping, lambda: compiled(Qa())])
def test_the_modules_inside_a_program_are_those_that_dspy_names(make: Any) -> None:
    program = make()
    assert list(_sub_modules(program)) == list(program.named_sub_modules())
