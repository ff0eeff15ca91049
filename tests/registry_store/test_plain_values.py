"""The quick look at values takes what the full look takes, in few steps."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspy_registry import ModuleInfo
from dspy_registry.registry_store.layout import MAX_METADATA_DEPTH, MAX_RECORD_VALUES
from dspy_registry.registry_store.plain_values import LARGEST_INT, SMALLEST_INT, plain_size
from dspy_registry.registry_store.validation import module_problems, validate_encoded
from tests.support.lines import lines_run


class Word(str, enum.Enum):
    LOW = "low"


def size_of(value: Any) -> int:
    items = list(value.values() if isinstance(value, dict) else value) if isinstance(value, (dict, list)) else []
    return len(items) + sum(map(size_of, items))


def nested(depth: int, innermost: Any, width: int) -> dict[str, Any]:
    """A mapping of so many levels, itself included. Each has `width` empty items beside the next."""
    value = innermost
    for _ in range(depth - 1):
        value = [None] * width + [value]
    return {"x": value}


PLAIN = (
    st.none()
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.sampled_from([SMALLEST_INT, LARGEST_INT, 0])
)
WRONG = st.sampled_from(
    [SMALLEST_INT - 1, LARGEST_INT + 1, float("nan"), float("inf"), "\ud800", Word.LOW, b"x", (), object(), 1j]
)
KEYS = st.text(max_size=3) | st.sampled_from(["\ud800", Word.LOW, 1, None])


def holding(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = st.lists(inner, max_size=3).map(lambda items: items * 12)  # so many that they are looked at all at once
    return many | st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3)


VALUES = st.recursive(PLAIN | PLAIN | PLAIN | WRONG, holding, max_leaves=12)


@given(st.dictionaries(KEYS, VALUES, max_size=3) | VALUES, st.integers(0, 400))
def test_what_the_quick_look_takes_has_no_problem_and_that_size(metadata: Any, most: int) -> None:
    size = plain_size(metadata, most)
    problems = tuple(module_problems(ModuleInfo("a.B", metadata=metadata), most))
    assert (size <= most) == (not problems)
    if size <= most:
        assert size == size_of(metadata)


@pytest.mark.parametrize("width", [0, 100])
@pytest.mark.parametrize("innermost", [[], {}, None, [1]])
def test_both_looks_have_the_same_bound_of_depth(width: int, innermost: Any) -> None:
    for depth in range(MAX_METADATA_DEPTH - 2, MAX_METADATA_DEPTH + 3):
        metadata = nested(depth, innermost, width)
        problems = tuple(module_problems(ModuleInfo("a.B", metadata=metadata)))
        assert (plain_size(metadata, MAX_RECORD_VALUES) <= MAX_RECORD_VALUES) == (not problems)


@pytest.mark.parametrize("item", [[], {}, 0, 2**63, -1.5, True, None, "", "text"], ids=repr)
def test_many_values_take_at_most_the_steps_of_a_comprehension_each(item: Any) -> None:
    values: list[Any] = [item] * (MAX_RECORD_VALUES - 1)
    assert lines_run(lambda: validate_encoded(ModuleInfo("a.B", metadata={"x": values}))) < 3 * MAX_RECORD_VALUES


def test_values_without_end_are_not_followed() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert plain_size({"x": endless}, MAX_RECORD_VALUES) > MAX_RECORD_VALUES
    doubled: list[Any] = [0, 0]
    for _ in range(MAX_METADATA_DEPTH - 3):
        doubled = [doubled, doubled]
    assert plain_size({"x": doubled}, MAX_RECORD_VALUES) > MAX_RECORD_VALUES
