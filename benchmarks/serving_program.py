"""A DSPy program of a given size, and a worker process that answers with it: `… benchmarks.serving_program PATH`.

A worker asks for its program before each answer, as a service does. It notes when each program was first there, and how
long each answer took. It ends when its standard input does, and prints both as JSON.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any, Final

import dspy
from dspy.utils import DummyLM

from dspy_registry import Programs, Registry

NAME: Final = "acme.Qa"
LIVE: Final = "acme.Qa@live"
ALLOW: Final = ("benchmarks",)
PACE: Final = 0.02  # seconds from one request to the next


class Qa(dspy.Module):  # type: ignore[misc]
    """Answers with one predictor; the demonstrations of the other make the program as large as it is to be."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.large = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.answer(question=question)


def program(mark: str, size: int) -> Any:
    """A program of about `size` bytes, told apart by its mark."""
    made = Qa()
    made.answer.signature = made.answer.signature.with_instructions(mark)
    made.large.demos = [dspy.Example(question=f"{at}", answer="x" * 1000) for at in range(size // 1024)]
    return made


def mark_of(made: Any) -> str:
    """The mark of a program."""
    return str(made.answer.signature.instructions)


def serve(path: str) -> None:
    """Answer until standard input ends."""
    dspy.configure(lm=DummyLM({"": {"answer": "yes"}}))
    seen: dict[str, float] = {}
    answers: list[tuple[float, float]] = []
    with Registry(path) as registry:
        programs = Programs(registry, ALLOW)
        programs[LIVE](question="?")
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while not select.select([sys.stdin], [], [], PACE)[0]:
            began = time.monotonic()
            current = programs[LIVE]
            current(question="?")
            answers.append((began, time.monotonic() - began))
            seen.setdefault(mark_of(current), time.monotonic())
    sys.stdout.write(json.dumps({"seen": seen, "answers": answers}))


if __name__ == "__main__":
    serve(sys.argv[1])
