"""What JSON cannot give back is found wherever it is in a state."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry.readers import program_state
from dspy_registry.readers.program_state import json_problems
from dspy_registry.registry_store.program_document import MAX_DEPTH

ODD = (None, True, 1, 2**70, 0.5, math.nan, "é", "\ud800", (1,), {1}, b"bytes")
PLAIN = st.dictionaries(st.text(st.characters(max_codepoint=127), max_size=3), st.just("plain"), max_size=3)
SCALARS = st.sampled_from(ODD) | st.text(max_size=3)
KEYS = st.text(max_size=2) | st.integers(0, 3)
VALUES = st.recursive(
    SCALARS | PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=20
)


@given(VALUES)
def test_a_look_at_all_demonstrations_at_once_finds_what_a_look_at_each_finds(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(program_state, "_are_dicts_of_plain_text", lambda values: False)
        expected = list(json_problems(value, "state"))
    assert list(json_problems(value, "state")) == expected


@pytest.mark.parametrize("odd", [2**70, math.nan, "\ud800", (1,), {1}, b"bytes"])
def test_one_odd_value_among_plain_demonstrations_is_named(odd: Any) -> None:
    demos = [{"question": "q", "answer": "a"} for _ in range(5)]
    (problem,) = json_problems([*demos, {"answer": odd}], "demos")
    assert problem.startswith("demos[5].answer: ")


def test_one_odd_key_among_plain_demonstrations_is_named() -> None:
    assert list(json_problems([{"question": "q"}, {1: "a"}], "demos")) == ["demos[1]: the key 1 is no text"]


def test_what_nests_too_deep_is_told() -> None:
    value: Any = [{"question": "q"}]
    for _ in range(MAX_DEPTH):
        value = [value]
    assert [problem.partition(": ")[2] for problem in json_problems(value, "demos")] == [
        f"nests deeper than {MAX_DEPTH}"
    ]
