"""A worker of the example: it answers with the program that the label names."""

from __future__ import annotations

import time
from multiprocessing.synchronize import Barrier

import dspy
from acme_qa import LIVE_LABEL, NAME, model

from dspy_registry import Programs, Registry


def work(path: str, number: int, has_answered: Barrier) -> None:
    """A worker: it asks for the program before each answer, and ends when it has answered with the second version."""
    dspy.configure(lm=model())
    live = f"{NAME}@{LIVE_LABEL}"
    registry = Registry(path, wait=10)
    programs = Programs(registry, allow=("acme_qa",))
    told = 0
    while told < 2:
        version = programs.status()[0].serving if programs[live] else 0
        if version != told:
            answer = programs[live](question="What is it?").answer
            print(f"worker {number}: version {version} answers {answer!r}", flush=True)
            told = version
            if version == 1:
                has_answered.wait()
        time.sleep(0.01)
