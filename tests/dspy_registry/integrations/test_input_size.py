"""How long inputs are, whatever they are made of."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

import dspy
import pydantic
import pytest

from dspy_registry.integrations.input_size import input_characters
from dspy_registry.registry_store.usage import VERY_LARGE_INPUT

pytestmark = pytest.mark.dspy
TEXT = "x" * 60_000


class Page(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    title: str = ""
    parts: list[Page] = []


@dataclasses.dataclass
class Chunk:
    text: str
    number: int = 0


def nested(depth: int, inside: Any) -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


KNOWN = {
    "text": TEXT,
    "bytes": TEXT.encode(),
    "dict": {"question": {"text": TEXT}},
    "set": {TEXT},
    "frozenset": frozenset({TEXT}),
    "tuple": (TEXT, 1, None, True, 2.5),
    "model": Page(parts=[Page(title=TEXT)]),
    "extra": Page(more=TEXT),  # type: ignore[call-arg]
    "history": dspy.History(messages=[{"question": TEXT[:30_000], "answer": TEXT[30_000:]}]),
    "example": dspy.Example(question=TEXT).with_inputs("question"),
    "prediction": dspy.Prediction(answer=TEXT),
    "dataclass": [Chunk(TEXT)],
    "mapping": collections.ChainMap({"a": TEXT}),
    "deep": nested(5_000, TEXT),
    "long": ["x" * 6] * 10_000,
    "long set": {f"{at:06}" for at in range(10_000)},
    "shared": [["x" * 30_000]] * 2,
    "beside a function": [TEXT, len, int],
}


@pytest.mark.parametrize("kind", KNOWN)
def test_an_input_is_measured_whatever_holds_it(kind: str) -> None:
    assert input_characters({"args": (), "kwargs": {"value": KNOWN[kind]}}) == len(TEXT)


def test_a_long_input_is_measured_by_a_sample() -> None:
    assert input_characters(["x"] * 5_000_000) == 5_000_000
    assert input_characters([["ab"] * 3_000] * 3_000) > VERY_LARGE_INPUT  # looked at in part: at least so many


class Raises:
    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def circle() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


UNKNOWN = {
    "object": object(),
    "raises": Raises(),
    "circle": circle(),
    "iterator": iter(["x"]),
    "beside a text": {"a": [object(), "x"]},
    "too deep": nested(50_000, "x"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_what_cannot_be_measured_is_not_known(kind: str) -> None:
    assert input_characters(UNKNOWN[kind]) is None


def test_a_part_that_is_more_than_normal_counts_beside_one_that_cannot_be_measured() -> None:
    assert input_characters([object(), TEXT]) == len(TEXT)


def test_numbers_and_functions_have_no_text() -> None:
    assert input_characters([1, 2.5, None, True, len, str, [], {}]) == 0
