"""Two functions that stand for DSPy programs. Put yours in their place: `dspy.Predict("question -> answer")`."""

from __future__ import annotations


def quick(question: str) -> str:
    """A short answer."""
    return f"{question} Yes."


def thorough(question: str) -> str:
    """A longer one."""
    return f"{question} It depends; first of all, yes."


TARGETS = {"acme.Quick": quick, "acme.Thorough": thorough}
"""What to call, by the name of the module that it is."""
