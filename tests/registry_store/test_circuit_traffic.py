"""The tables of docs/health.md say what the simulation says."""

from __future__ import annotations

import pytest

from tests.support import ROOT
from tests.support.circuit_traffic import HOURS, NOTICE_RATES, false_openings, notice_row, openings_row
from tests.support.selection import each

LINES = (ROOT / "docs" / "health.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("rate", [rate for rate in HOURS if rate <= 1])
def test_false_openings(rate: float) -> None:
    assert openings_row(rate) in LINES


@pytest.mark.stress
@pytest.mark.parametrize("rate", [rate for rate in HOURS if rate > 1])
def test_false_openings_of_much_traffic(rate: float) -> None:
    assert openings_row(rate) in LINES


@pytest.mark.parametrize("rate", each(2, NOTICE_RATES))
def test_time_to_notice(rate: float) -> None:
    assert notice_row(rate) in LINES


def test_few_errors_never_open_it() -> None:
    assert false_openings(100.0, 0.05, 0.1) == 0
    assert false_openings(100.0, 0.9, 0.01) > 0
