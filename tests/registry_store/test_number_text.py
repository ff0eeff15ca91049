"""Numbers as text: plain digits, and nothing else that Python takes."""

from __future__ import annotations

import pytest

from dspy_registry.registry_store.number_text import number, whole_number

NO_NUMBERS = (
    "", " ", "x", "\u0661\u0662", "\uff15", "\u00b2", "1_000", " 5", "5 ", "5\n", "0x10", "--5", "1,5", "9" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("text", [*NO_NUMBERS, "5.0", "1e3", "nan", "inf"])
def test_what_is_no_whole_number(text: str) -> None:
    assert whole_number(text) is None


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("007", 7), ("-5", -5), ("+5", 5), ("9" * 20, 10**20 - 1)])
def test_what_is_one(text: str, value: int) -> None:
    assert whole_number(text) == value


@pytest.mark.parametrize("text", [*NO_NUMBERS, "nan", "inf", "-Infinity", "1e999", ".", "1e", "e5", "1.5.2"])
def test_what_is_no_number(text: str) -> None:
    assert number(text) is None


@pytest.mark.parametrize(("text", "value"), [("12", 12), (".5", 0.5), ("2.", 2), ("-1e-3", -0.001), ("1E+22", 1e22)])
def test_what_is_a_number(text: str, value: float) -> None:
    assert number(text) == value
