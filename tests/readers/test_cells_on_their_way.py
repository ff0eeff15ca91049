"""A cell on its way from one process to another: a pause, and a death, at every line of ours."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from dspy_registry.readers.lease_regions import Region
from dspy_registry.readers.leases import Leases
from dspy_registry.readers.limits import LimitedCall, all_holders
from dspy_registry.registry_store.byte_locks import Hold
from dspy_registry.registry_store.errors import LimitReachedError
from dspy_registry.registry_store.lease_cells import is_in_use, owner_of, revoke
from dspy_registry.registry_store.lease_file import LeaseFile
from dspy_registry.registry_store.policy import Limit
from tests.support.kept_cells import leases, needs_membarrier
from tests.support.limit_process import QA, all_free, began, call
from tests.support.pauses import killed_at, paused_at

OURS = ("leases.py", "lease_regions.py", "lease_cells.py", "lease_records.py", "byte_locks.py", "limits.py")

__all__ = ["leases"]

pytestmark = needs_membarrier


def steals(one: Leases, other: Leases) -> None:
    """The other one keeps the cell, and the first one needs it."""
    call(other).__enter__().end()


def begins_again(one: Leases, other: Leases) -> None:
    """The first one keeps the cell, and the other one needs it."""
    call(one).__enter__().end()


def note_whether_it_began(limited: LimitedCall, found: list[bool]) -> None:
    found.append(began(limited))


@pytest.mark.parametrize("before", [steals, begins_again])
def test_one_of_two_begins_wherever_the_other_one_pauses(
    tmp_path: Path, before: Callable[[Leases, Leases], None]
) -> None:
    one, other = Leases(tmp_path), Leases(tmp_path)
    line, more = 0, True
    while more:
        before(one, other)
        calls = [call(one), call(other)]
        found: list[bool] = []
        tries = [partial(note_whether_it_began, each, found) for each in calls]
        more = paused_at(line, *tries, *OURS)
        assert sorted(found) == [False, True], f"at line {line}"
        for each in calls:
            each.end()
        assert all_free(tmp_path)
        line += 1
    assert line > 20


@pytest.mark.parametrize("before", [steals, begins_again])
def test_a_call_is_not_lost_wherever_another_begins_and_ends(
    tmp_path: Path, before: Callable[[Leases, Leases], None]
) -> None:
    one, other = Leases(tmp_path), Leases(tmp_path)
    line, more = 0, True
    while more:
        before(one, other)
        kept = call(other)
        found: list[bool] = []

        def begin_and_end() -> None:
            with call(one, patience=5.0):
                pass

        def meanwhile(kept: LimitedCall = kept, found: list[bool] = found) -> None:
            note_whether_it_began(kept, found)
            kept.end()

        more = paused_at(line, begin_and_end, meanwhile, *OURS)
        if found[0]:
            assert all_free(tmp_path)
        with call(other), pytest.raises(LimitReachedError):
            call(one).__enter__()
        line += 1
    assert line > 20


@pytest.mark.timeout(600)  # hundreds of processes, one after another
@pytest.mark.parametrize(
    ("is_busy", "step"),
    [(True, 7), pytest.param(True, 1, marks=pytest.mark.full), pytest.param(False, 1, marks=pytest.mark.full)],
)
def test_whoever_dies_at_any_line_leaves_the_cell_as_it_was(tmp_path: Path, is_busy: bool, step: int) -> None:
    """It needs a cell that another process keeps, with a call in it or without."""
    keeps, looks = Leases(tmp_path), Leases(tmp_path)

    def work() -> None:
        leases = Leases(tmp_path)
        for _ in range(2):  # the second time in its own cell
            if began(limited := call(leases)):
                limited.end()

    line, more = 0, True
    while more:
        with call(keeps):
            if is_busy:
                more = killed_at(line, work, *OURS)
                assert not began(call(looks)), f"a death at line {line}"
                assert len(all_holders(looks)) == 1
        if not is_busy:
            more = killed_at(line, work, *OURS)
        assert all_free(tmp_path)
        with call(looks if line % 2 else keeps):
            pass
        line += step
    assert line > 60


def test_whoever_dies_taking_a_cell_in_which_a_call_has_just_begun_leaves_the_call(tmp_path: Path) -> None:
    keeps, looks = Leases(tmp_path), Leases(tmp_path)

    def work() -> None:
        file = Leases(tmp_path).file()
        taking = Hold(file)
        assert taking.take(start)
        assert not revoke(file, start, owner_of(file, start))
        taking.give_back()

    line, more = 0, True
    while more:
        with call(keeps):
            start = keeps.region(QA, 1).starts[0]
            more = killed_at(line, work, *OURS)
            assert not began(call(looks)), f"a death at line {line}"
            assert [each.pid for each in all_holders(looks)] == [os.getpid()]
        line += 1
    assert line > 30


class OnceMore(LimitedCall):
    """Its third try finds a cell no longer locked."""

    locked: Hold
    tries = 0

    def try_to_begin(self) -> Region | None:
        self.tries += 1
        if self.tries == 3:
            self.locked.give_back()
        return super().try_to_begin()


def test_a_cell_that_is_on_its_way_refuses_nobody(leases: Leases, tmp_path: Path) -> None:
    """Another process has its lock for a moment, while fewer calls are under way than the limit allows."""
    with call(leases, 2):
        first, second = leases.region(QA, 2).starts[:2]
        taking = Hold(LeaseFile(tmp_path))
        assert not is_in_use(leases.file(), second)
        assert is_in_use(leases.file(), first)
        assert taking.take(second)
        limited = OnceMore(leases, (Limit(QA, 2),), 0.0)
        limited.locked = taking
        with limited:
            assert len(all_holders(leases)) == 2
