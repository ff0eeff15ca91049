"""The program of the example. Workers import it by this name; in your project it is a module of your package."""

from __future__ import annotations

from typing import Any

import dspy
from dspy.utils import DummyLM

NAME = "acme.Qa"
LIVE_LABEL = "live"


class Qa(dspy.Module):  # type: ignore[misc]
    """A question, answered in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


def model() -> Any:
    """A model that needs no network, and always says the same."""
    return DummyLM({"": {"answer": "forty-two"}})
